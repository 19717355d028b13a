/** The model behind the page: waits until it has loaded, and asks for a key where the server needs one. */

import { model, setKey } from "./api.js";
import { byId, h } from "./dom.js";

const AGAIN = 2000; // milliseconds

/**
 * Ask for the model until it is there.
 * @param {function(object): void} known called with the description as soon as there is one, and again when it has loaded
 */
export async function connect(known) {
  for (;;) {
    let wait = true;
    try {
      const found = await model();
      known(found);
      if (found.qwq_ref?.loaded !== false) {
        banner(found.qwq_ref?.chat === false ? "This model has no chat template, so it cannot answer conversations." : null);
        return;
      }
      banner("The model is loading. You can write already.");
    } catch (problem) {
      if (problem.status === 401) {
        await askKey();
        wait = false;
      } else {
        banner(problem.code === "unreachable" ? "The server cannot be reached. The page tries again." : problem.message);
      }
    }
    if (wait) await new Promise((resolve) => { setTimeout(resolve, AGAIN); });
  }
}

/** Show a line above everything; null: none. */
export function banner(text) {
  byId("banner").hidden = text === null;
  byId("banner").textContent = text ?? "";
}

/** Ask a person for the server's key. */
export function askKey() {
  const dialog = byId("key");
  const input = h("input", { id: "key-input", type: "password", autocomplete: "off" });
  return new Promise((resolve) => {
    dialog.replaceChildren(h("form", { method: "dialog", on: { submit: (event) => {
      event.preventDefault();
      setKey(input.value.trim());
      dialog.close();
    } } },
      h("h2", { id: "key-title", text: "The server needs its key" }),
      h("div", { class: "field wide" }, h("label", { for: "key-input", text: "Key" }), input,
        h("span", { class: "hint", text: "kept until this window closes" })),
      h("div", { class: "dialog-buttons" }, h("span", { class: "grow" }), h("button", { type: "submit", class: "main-button", text: "Go on" }))));
    dialog.addEventListener("close", () => resolve(), { once: true });
    dialog.showModal();
  });
}
