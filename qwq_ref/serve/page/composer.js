/** The box for messages: Enter sends, unless an input method is at work. */

import { byId, count } from "./dom.js";

export class Composer {
  /** @param {object} acts send(text), stop(), editLast() */
  constructor(acts) {
    this.box = byId("box");
    this.send = byId("send");
    this.stop = byId("stop");
    const submit = () => {
      const text = this.box.value;
      if (text.trim() === "" || !this.stop.hidden || this.box.disabled) return;
      this.box.value = "";
      this.#fit();
      acts.send(text);
    };
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      submit();
    });
    this.stop.addEventListener("click", () => acts.stop());
    this.box.addEventListener("input", () => this.#fit());
    this.box.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return; // Enter chooses a word of the input method
      if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
        event.preventDefault();
        submit();
      } else if (event.key === "ArrowUp" && this.box.value === "") {
        event.preventDefault();
        acts.editLast();
      }
    });
    this.#fit();
  }

  /** Show the button that stops in place of the one that sends. */
  busy(is) {
    const focused = document.activeElement === this.stop || document.activeElement === this.send;
    this.stop.hidden = !is;
    this.send.hidden = is;
    if (focused) this.box.focus();
  }

  #fit() {
    this.box.style.height = "auto";
    if (this.box.scrollHeight) this.box.style.height = `${Math.min(this.box.scrollHeight, 0.4 * innerHeight)}px`;
    this.send.disabled = this.box.value.trim() === "";
  }

  /** Show how much of the context is used; null: unknown. */
  meter(used, size) {
    const meter = byId("meter");
    meter.hidden = !size || used === null;
    if (meter.hidden) return;
    const share = Math.min(1, used / size);
    const words = `${count(used)} of ${count(size)} tokens`;
    meter.setAttribute("aria-valuenow", used);
    meter.setAttribute("aria-valuemax", size);
    meter.setAttribute("aria-valuetext", words);
    meter.title = `The last answer used ${words} of the context. Reasoning of earlier answers is dropped.`;
    meter.querySelector(".meter-text").textContent = words;
    meter.querySelector(".meter-fill").style.width = `${100 * share}%`;
    meter.classList.toggle("full", share > 0.85);
  }
}
