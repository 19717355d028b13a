/** The two views of the page. The second one is loaded when it is shown first. */

import { byId } from "./dom.js";

const NAMES = ["chat", "inside"];

/**
 * @param {function(): object} chat returns the `Chat`
 * @returns {{show: function(string): void, look: function(string, object): void}}
 */
export function startTabs(chat) {
  let inside = null;
  const tab = (name) => byId(`tab-${name}`);

  const show = async (name, given = null) => {
    for (const each of NAMES) {
      const shown = each === name;
      byId(each).hidden = !shown;
      tab(each).setAttribute("aria-selected", shown);
      tab(each).tabIndex = shown ? 0 : -1;
    }
    if (name === "inside") {
      inside ??= import("./inside.js").then((module) => new module.Inside(byId("inside")));
      (await inside).show(given ?? chat().lastExchange(), given !== null);
    }
  };

  for (const [at, name] of NAMES.entries()) {
    tab(name).addEventListener("click", () => show(name));
    tab(name).addEventListener("keydown", (event) => {
      if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
      const other = NAMES[(at + 1) % NAMES.length];
      show(other);
      tab(other).focus();
    });
  }
  return { show, look: (question, answer) => { show("inside", { question, answer }); tab("inside").focus(); } };
}
