export class Inside { constructor(element) { this.element = element; } show() {} }
