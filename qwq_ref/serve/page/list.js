/** The list of conversations: choose, search, rename, delete. */

import { byId, h, iconButton } from "./dom.js";

/**
 * @param {object} acts open(id), rename(conversation, title), remove(conversation), search(text): Promise<Set<string>>
 */
export class List {
  #conversations = [];
  #current = null;
  #busy = new Set();
  #text = "";
  #found = null;
  #timer = 0;

  constructor(acts) {
    this.acts = acts;
    this.element = byId("list");
    this.note = byId("list-note");
    const search = byId("search");
    search.addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#search(search.value), 120);
    });
    search.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && search.value) {
        event.stopPropagation();
        search.value = "";
        this.#search("");
      } else if (event.key === "ArrowDown") {
        event.preventDefault();
        this.element.querySelector(".open")?.focus();
      }
    });
    this.element.addEventListener("keydown", (event) => this.#move(event));
  }

  /** Draw the list. `busy` holds the ids of conversations that get an answer. */
  draw(conversations, current, busy) {
    this.#conversations = conversations;
    this.#current = current;
    this.#busy = busy;
    this.#draw();
  }

  async #search(text) {
    const wanted = text.trim().toLowerCase();
    const found = wanted ? await this.acts.search(wanted) : null;
    if (byId("search").value !== text) return; // a later search is on its way
    this.#text = wanted;
    this.#found = found;
    this.#draw();
  }

  #draw() {
    const shown = this.#conversations.filter(
      (each) => !this.#text || each.title.toLowerCase().includes(this.#text) || this.#found.has(each.id));
    const focused = this.element.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
    this.element.replaceChildren(...shown.map((each) => this.#row(each)));
    this.note.hidden = shown.length > 0;
    this.note.textContent = this.#text ? "Nothing found." : "Conversations stay in this browser.";
    if (focused) this.element.querySelector(`li[data-id="${focused}"] .open`)?.focus();
  }

  #row(conversation) {
    const current = conversation.id === this.#current;
    const title = conversation.title || "New conversation";
    const row = h("li", { "data-id": conversation.id, class: current ? "current" : null },
      h("button", { type: "button", class: "open", "aria-current": current ? "page" : null, title,
        on: { click: () => this.acts.open(conversation.id), dblclick: () => this.#rename(row, conversation) } },
      h("bdi", { text: title }),
      this.#busy.has(conversation.id) ? h("span", { class: "dot", role: "img", "aria-label": "is being answered" }) : null),
      h("span", { class: "row-tools" },
        iconButton("edit", `Rename ${title}`, () => this.#rename(row, conversation)),
        iconButton("trash", `Delete ${title}`, () => this.acts.remove(conversation))));
    return row;
  }

  #rename(row, conversation) {
    const input = h("input", { "aria-label": "Title", maxlength: "200", dir: "auto" });
    input.value = conversation.title;
    let done = false;
    const end = (keep) => {
      if (done) return;
      done = true;
      const title = input.value.trim();
      if (keep && title && title !== conversation.title) this.acts.rename(conversation, title);
      this.#draw();
      this.element.querySelector(`li[data-id="${conversation.id}"] .open`)?.focus();
    };
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
      event.preventDefault(); // the row that gets the focus would take the key, too
      end(event.key === "Enter");
    });
    input.addEventListener("blur", () => end(true));
    row.replaceChildren(input);
    input.select();
  }

  /** Arrows move in the list, F2 renames, Delete deletes. */
  #move(event) {
    const row = event.target.closest("li");
    if (!row || event.target.tagName === "INPUT") return;
    const conversation = this.#conversations.find((each) => each.id === row.dataset.id);
    if (event.key === "ArrowDown") row.nextElementSibling?.querySelector(".open").focus();
    else if (event.key === "ArrowUp") (row.previousElementSibling?.querySelector(".open") ?? byId("search")).focus();
    else if (event.key === "F2") this.#rename(row, conversation);
    else if (event.key === "Delete") this.acts.remove(conversation);
    else return;
    event.preventDefault();
  }
}
