/** The tab that looks into the model: a text, its tokens, and three pictures of the chosen token. */

import { inside as ask } from "./api.js";
import { announce, count, duration, h, many } from "./dom.js";
import { Heads } from "./heads.js";
import { LensTable } from "./lens.js";
import { Residual } from "./residual.js";
import { TokenStrip } from "./tokens.js";

const EXAMPLE = {
  question: "What is 12+34?",
  text: "Reverse 12+34:\n21+43\n2+4+0=06,6\n1+3+0=04,46\nSo 46\n</think>\n\nThe answer is \\boxed{46}.",
};
const ALL = ["attention", "residual", "lens"];

export class Inside {
  #data = null;
  #token = 0;
  #stop = new AbortController();
  #begun = false;

  constructor(element) {
    this.prompt = h("textarea", { id: "inside-prompt", rows: "3", dir: "auto" });
    this.answer = h("textarea", { id: "inside-answer", rows: "3", dir: "auto" });
    this.status = h("p", { class: "quiet inside-status" });
    this.strip = new TokenStrip((token) => this.#choose(token));
    this.heads = new Heads((weights, text) => this.#tint(weights, text));
    this.residual = new Residual();
    this.lens = new LensTable();
    this.pictures = h("div", { hidden: true },
      picture("The text in tokens", "The model reads and writes tokens, which are pieces of words. Choose one: the pictures below show the moment when the model has read it, and is about to say the next. The colours show where the chosen head looks.", this.strip.element),
      picture("Attention", "Each head looks from the chosen token back at all tokens up to it, and takes what it finds there. A small picture shows one head: the higher the bar, the more it looks at that token. Rows are layers, from the first on top. Heights follow the square root of the probability, so that small ones can be seen.", this.heads.element),
      picture("After each layer", "If the model ended after this layer, it would say these tokens next. The deeper the colour, the likelier the token. The rank is the place of the token that is likeliest in the end.", this.lens.element),
      picture("The residual stream", "Each token is a list of numbers, and each layer adds to it. The lines show its size after each layer: the chosen token is the strong line. The bars show how much the attention and the MLP of each layer add, as a share of the size before the layer.", this.residual.element));
    element.append(h("div", { class: "inside-page" },
      h("form", { class: "inside-form", on: { submit: (event) => { event.preventDefault(); this.#look(); } } },
        h("h2", { text: "Look inside the model" }),
        h("div", { class: "inside-fields" },
          h("div", { class: "field" }, h("label", { for: "inside-prompt", text: "Question" }), this.prompt),
          h("div", { class: "field" }, h("label", { for: "inside-answer", text: "Reasoning, </think>, answer" }), this.answer)),
        h("div", { class: "inside-buttons" }, h("button", { type: "submit", class: "main-button", text: "Look" }), this.status)),
      this.pictures,
      h("p", { class: "quiet", text: "docs/inside.md explains these pictures. The command qwq plot draws them as files." })));
  }

  /**
   * Show the tab.
   * @param {{question: string, answer: object}|null} exchange of a conversation
   * @param {boolean} wanted take it also where the tab shows something already
   */
  show(exchange, wanted) {
    if (this.#begun && !wanted) return;
    this.#begun = true;
    this.prompt.value = exchange?.question ?? EXAMPLE.question;
    this.answer.value = exchange ? whole(exchange.answer) : EXAMPLE.text;
    this.#look();
  }

  #body(subjects) {
    return { prompt: this.prompt.value, answer: this.answer.value.slice(0, 20000), subjects };
  }

  async #ask(body) {
    this.#stop.abort();
    this.#stop = new AbortController();
    const { signal } = this.#stop;
    this.status.textContent = "Looking…";
    const begin = performance.now();
    const timer = setInterval(() => { // models of some hundred million parameters take a minute
      this.status.textContent = `Looking… ${duration((performance.now() - begin) / 1000)}`;
    }, 1000);
    signal.addEventListener("abort", () => clearInterval(timer));
    try {
      const found = await ask(body, signal);
      if (!signal.aborted) this.status.textContent = "";
      return signal.aborted ? null : found;
    } catch (problem) {
      if (!signal.aborted) this.status.textContent = `The server cannot look: ${problem.message}`;
      return null;
    } finally {
      clearInterval(timer);
    }
  }

  async #look() {
    const asked = this.#body(ALL);
    const data = await this.#ask({ ...asked, token: -1 });
    if (!data) return;
    this.#data = data;
    this.asked = asked;
    this.pictures.hidden = false;
    const left = data.left_out ? ` The last ${many(data.left_out, "token")} are left out: a look takes ${count(data.most_tokens)}.` : "";
    this.words = `${many(data.tokens.length, "token")}, ${data.layers} layers of ${data.heads} heads.${left}`;
    this.status.textContent = this.words;
    this.strip.draw(data.tokens, data.prompt_tokens);
    this.#token = data.token;
    this.#draw();
    this.#choose(hardest(data));
  }

  /** Show another token: its attention comes from the server, the rest is here already. */
  async #choose(token) {
    if (token === this.#token || !this.#data) return;
    this.#token = token;
    this.strip.select(token);
    this.residual.draw(this.#data.residual, token);
    this.lens.draw(this.#data, token);
    const found = await this.#ask({ ...this.asked, subjects: ["attention"], token });
    if (!found) return;
    this.status.textContent = this.words;
    this.#data.attention = found.attention;
    this.#draw();
    announce(`Token ${token}, ${this.lens.summary}`);
  }

  #draw() {
    this.strip.select(this.#token);
    this.heads.draw(this.#data, this.#token);
    this.residual.draw(this.#data.residual, this.#token);
    this.lens.draw(this.#data, this.#token);
  }

  #tint(weights, text) {
    this.strip.tint(weights);
    this.heads.say(text);
  }
}

function picture(title, words, element) {
  return h("section", { class: "picture" }, h("h3", { text: title }), h("p", { class: "quiet", text: words }), element);
}

/** Return the token of the answer behind which the model makes up its mind last. */
function hardest({ lens, tokens, prompt_tokens: begin }) {
  const late = (token) => lens.rank.reduce((sum, row) => sum + Math.log(row[token]), 0);
  const answer = tokens.map((_, at) => at).slice(begin, -1);
  return answer.reduce((best, at) => (late(at) > late(best) ? at : best), answer[0] ?? tokens.length - 1);
}

/** Return an answer as the model wrote it. */
function whole({ reasoning, text, state }) {
  if (!reasoning) return text;
  return text || state === "done" ? `${reasoning.trimEnd()}\n</think>\n\n${text}` : reasoning;
}
