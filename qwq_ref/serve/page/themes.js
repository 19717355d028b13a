/** The switch between the system's theme, light and dark. */

import { byId } from "./dom.js";
import { icon } from "./icons.js";
import { local } from "./memory.js";

const KEY = "qwq.theme";
const THEMES = ["system", "light", "dark"];

export function startTheme() {
  const button = byId("theme");
  const draw = () => {
    const theme = document.documentElement.dataset.theme ?? "system";
    button.replaceChildren(icon(theme === "light" ? "sun" : "moon"), `Theme: ${theme}`);
    return theme;
  };
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(draw()) + 1) % THEMES.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    local.set(KEY, next);
    draw();
  });
  draw();
}
