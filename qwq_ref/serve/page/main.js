/** The start of the page. */

import { Chat } from "./chat.js";
import { askKey, banner, connect } from "./connection.js";
import { byId, drawIcons, h } from "./dom.js";
import { listen } from "./keys.js";
import * as settings from "./settings.js";
import { openStore } from "./store.js";
import { startTabs } from "./tabs.js";
import { startTheme } from "./themes.js";

const EXAMPLES = ["What is 123+456?", "What can you do?", "123+456等于多少？"]; // of the shipped model

drawIcons();
startTheme();
start();

async function start() {
  const store = await openStore();
  const tabs = startTabs(() => chat);
  const chat = new Chat(store, { look: (question, message) => tabs.look(question, message), key: askKey });

  byId("new").addEventListener("click", () => { tabs.show("chat"); chat.create(); });
  byId("settings-open").addEventListener("click", () => settings.open(chat.model));
  const phone = matchMedia("(max-width: 760px)");
  const side = (shown = null) => { // on a phone, the class shows the list; elsewhere, it hides it
    const open = shown === null ? undefined : shown === phone.matches;
    document.body.classList.toggle("side-open", open);
    if (phone.matches && document.body.classList.contains("side-open")) byId("new").focus({ preventScroll: true });
  };
  for (const id of ["side-open", "side-close", "shade"]) byId(id).addEventListener("click", () => side());
  listen({
    stop: () => {
      if (document.body.classList.contains("side-open") && phone.matches) return side(false);
      return chat.stop();
    },
    create: () => { tabs.show("chat"); chat.create(); },
    search: () => { side(true); byId("search").focus(); },
    focus: () => { tabs.show("chat"); byId("box").focus(); },
    settings: () => settings.open(chat.model),
  });
  byId("examples").append(...EXAMPLES.map((text) => h("li", {},
    h("button", { type: "button", class: "example", text, on: { click: () => { chat.ask(text); byId("box").focus(); } } }))));

  await chat.begin();
  document.documentElement.dataset.ready = "";
  if (matchMedia("(hover: hover)").matches) byId("box").focus();
  await connect((model) => {
    chat.model = model;
    byId("welcome-model").textContent = describe(model);
    byId("examples").hidden = !model.id.startsWith("qwq-nano");
    chat.draw();
  });
  if (!store.lasting) banner("This browser keeps nothing for the page: conversations end with the window.");
}

function describe(model) {
  const context = model.max_model_len ? `, ${model.max_model_len.toLocaleString("en-US")} tokens of context` : "";
  return `${model.id}${context}`;
}
