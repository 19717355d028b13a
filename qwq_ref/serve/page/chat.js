/** The conversations: what a person does, and what follows in the store, the list and the thread. */

import { Answering, newAnswer } from "./answering.js";
import { Composer } from "./composer.js";
import { announce, byId, toast } from "./dom.js";
import { List } from "./list.js";
import { session } from "./memory.js";
import { asBody, read as settings } from "./settings.js";
import { keepUnsaved, takeUnsaved } from "./store.js";
import { Thread } from "./thread.js";
import { asJson, asMarkdown, fileName, readFile, save } from "./transfer.js";
import { asRequest, newId, Tree } from "./tree.js";

const CURRENT = "qwq.current";
const TITLE = 60; // characters
const SPOKEN = 600; // characters of an answer that a screen reader says by itself

export class Chat {
  conversations = [];
  current = null; // the conversation that is shown; null: a new one
  tree = new Tree([]);
  model = null;
  #answerings = new Map(); // id of a message -> Answering

  /** @param {object} acts look(question, message): show an answer in the other tab */
  constructor(store, acts) {
    this.store = store;
    this.acts = acts;
    this.thread = new Thread({
      live: (id) => this.#answerings.get(id)?.live ?? null,
      edit: (message, text) => this.#ask(text, message.parent),
      regenerate: (message, same) => this.#regenerate(message, same),
      version: (message, step) => this.#version(message, step),
      look: (message) => acts.look(this.tree.byId.get(message.parent)?.text ?? "", message),
    });
    this.list = new List({
      open: (id) => this.open(id),
      rename: (conversation, title) => this.#rename(conversation, title),
      remove: (conversation) => this.#remove(conversation),
      search: (text) => this.store.search(text),
    });
    this.composer = new Composer({
      send: (text) => this.#ask(text, this.current?.leaf ?? null),
      stop: () => this.stop(),
      editLast: () => this.#editLast(),
    });
    addEventListener("pagehide", () => keepUnsaved([...this.#answerings.values()].map((each) => each.message)));
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.#refresh(); });
    byId("export-md").addEventListener("click", () => this.#export("md"));
    byId("export-json").addEventListener("click", () => this.#export("json"));
    byId("export-all").addEventListener("click", () => this.#exportAll());
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.#import(event.target));
  }

  /** Show the conversation that was shown last. */
  async begin() {
    await takeUnsaved(this.store);
    this.conversations = await this.store.conversations();
    const wanted = session.get(CURRENT);
    await this.open(this.conversations.some((each) => each.id === wanted) ? wanted : null);
  }

  /** Show a conversation; null: a new one. */
  async open(id) {
    const conversation = this.conversations.find((each) => each.id === id) ?? null;
    const messages = conversation ? await this.store.messages(id) : [];
    // What grows is newer in this page than in the store.
    const known = messages.map((message) => this.#answerings.get(message.id)?.message ?? message);
    this.current = conversation;
    this.tree = new Tree(known);
    session.set(CURRENT, id ?? "");
    this.draw();
    this.thread.toEnd();
    if (matchMedia("(max-width: 760px)").matches) document.body.classList.remove("side-open");
  }

  /** Take over what another window of the page did. What this window answers at the moment is newer than the store. */
  async #refresh() {
    const busy = new Set([...this.#answerings.values()].map((each) => each.message.conversation));
    const known = new Map(this.conversations.map((each) => [each.id, each]));
    const stored = await this.store.conversations();
    const current = this.current;
    const before = current?.updated;
    this.conversations = stored.map((each) => {
      const own = known.get(each.id);
      return !own ? each : busy.has(each.id) ? own : Object.assign(own, each);
    });
    if (current && !this.conversations.includes(current)) await this.open(null);
    else if (current && current.updated !== before && !busy.has(current.id)) await this.open(current.id);
    else this.#drawRest();
  }

  /** Start a new conversation. */
  async create() {
    await this.open(null);
    this.composer.box.focus();
  }

  /** Stop the answer that is shown. Returns whether there was one. */
  stop() {
    const answering = this.#shown();
    answering?.stop();
    return answering !== null;
  }

  /** Ask a question in the conversation that is shown. */
  ask(text) {
    return this.#ask(text, this.current?.leaf ?? null);
  }

  #shown() {
    return this.#answerings.get(this.current?.leaf) ?? null;
  }

  async #ask(text, parent) {
    const now = Date.now();
    if (!this.current) {
      this.current = { id: newId(), title: titleOf(text), named: false, created: now, updated: now, leaf: null };
      this.conversations.unshift(this.current);
      this.tree = new Tree([]);
      session.set(CURRENT, this.current.id);
    }
    const message = { id: newId(), conversation: this.current.id, parent, role: "user", text, created: now };
    this.tree.add(message);
    await this.#keep(message);
    await this.#answer(message.id);
  }

  async #regenerate(message, same) {
    if (this.#shown()) return;
    await this.#answer(message.parent, same ? message.settings?.seed : undefined, !same);
  }

  /** Answer a message of the user. `fresh`: with a seed of its own, also where the settings have one. */
  async #answer(parent, seed, fresh = false) {
    const chosen = { ...settings() };
    if (fresh) delete chosen.seed;
    const request = asBody(chosen, asRequest(this.tree.path(parent), chosen.system), seed);
    const message = newAnswer(newId(), this.current.id, parent, request);
    const conversation = this.current;
    conversation.leaf = message.id;
    conversation.updated = Date.now();
    this.tree.add(message);
    await this.#keep(message, conversation);
    const answering = new Answering(message, request, this.store);
    this.#answerings.set(message.id, answering);
    answering.addEventListener("change", () => {
      this.thread.changed(message);
      this.#meter();
    });
    answering.addEventListener("unsaved", () => toast("The browser has no room for this conversation. Export it to keep it."), { once: true });
    answering.addEventListener("end", () => {
      this.#answerings.delete(message.id);
      this.thread.changed(message);
      this.#drawRest();
      announce(spoken(message));
      if (message.problem?.code === "invalid_api_key") this.acts.key();
    });
    this.draw();
    this.thread.toEnd();
  }

  #version(message, step) {
    const versions = this.tree.versions(message);
    const other = versions[versions.indexOf(message) + step];
    this.current.leaf = this.tree.end(other);
    this.store.putConversation(this.current);
    this.draw();
    const label = step < 0 ? "Earlier version" : "Later version";
    const buttons = [...this.thread.view(other.id).element.querySelectorAll(".switcher button")];
    (buttons.find((each) => each.ariaLabel === label && !each.disabled) ?? buttons.find((each) => !each.disabled))?.focus();
  }

  #editLast() {
    const path = this.tree.path(this.current?.leaf);
    const last = path.findLast((message) => message.role === "user");
    if (last) this.thread.view(last.id).edit();
  }

  async #keep(message, conversation = this.current) {
    try {
      await this.store.putAll([conversation], [message]);
    } catch {
      toast("The browser has no room for this conversation. Export it to keep it.");
    }
  }

  async #rename(conversation, title) {
    conversation.title = title;
    conversation.named = true;
    await this.store.putConversation(conversation);
    this.#drawRest();
  }

  async #remove(conversation) {
    for (const answering of [...this.#answerings.values()]) {
      if (answering.message.conversation === conversation.id) {
        answering.stop();
        await answering.done;
      }
    }
    const messages = await this.store.remove(conversation.id);
    this.conversations = this.conversations.filter((each) => each !== conversation);
    if (this.current === conversation) await this.open(null);
    else this.#drawRest();
    byId("search").focus();
    toast("Deleted", { label: "Undo", act: async () => {
      await this.store.putAll([conversation], messages);
      this.conversations = await this.store.conversations();
      await this.open(conversation.id);
    } });
  }

  async #export(suffix) {
    if (!this.current) {
      toast("There is nothing to export yet");
      return;
    }
    const { title } = this.current;
    const messages = [...this.tree.byId.values()];
    if (suffix === "md") save(fileName(title, "md"), "text/markdown", asMarkdown(this.current, messages));
    else save(fileName(title, "json"), "application/json", asJson([{ conversation: this.current, messages }]));
  }

  async #exportAll() {
    const items = [];
    for (const conversation of this.conversations) {
      items.push({ conversation, messages: await this.store.messages(conversation.id) });
    }
    save("qwq-conversations.json", "application/json", asJson(items));
  }

  async #import(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    try {
      const { conversations, messages } = await readFile(file);
      await this.store.putAll(conversations, messages);
      this.conversations = await this.store.conversations();
      await this.open(conversations[0]?.id ?? null);
      toast(`Imported ${conversations.length} conversation${conversations.length === 1 ? "" : "s"}`);
    } catch (problem) {
      toast(problem.message);
    }
  }

  /** Draw everything. */
  draw() {
    const path = this.current ? this.tree.path(this.current.leaf) : [];
    this.thread.show(path, this.tree);
    this.#drawRest();
  }

  #drawRest() {
    const busy = new Set([...this.#answerings.values()].map((each) => each.message.conversation));
    this.conversations.sort((a, b) => b.updated - a.updated);
    this.list.draw(this.conversations, this.current?.id ?? null, busy);
    const title = this.current?.title || "New conversation";
    byId("title").textContent = title;
    document.title = this.current ? `${title} – qwq` : "qwq";
    for (const id of ["export-md", "export-json"]) byId(id).disabled = !this.current;
    this.composer.busy(this.#shown() !== null);
    this.#meter();
  }

  #meter() {
    let last = this.tree.byId.get(this.current?.leaf);
    while (last && !last.counts?.prompt) last = this.tree.byId.get(last.parent);
    this.composer.meter(last ? last.counts.prompt + last.counts.output : null, this.model?.max_model_len);
  }

  /** Return the last question and its answer, or null. */
  lastExchange() {
    const path = this.tree.path(this.current?.leaf);
    const answer = path.findLast((message) => message.role === "assistant");
    return answer ? { question: this.tree.byId.get(answer.parent)?.text ?? "", answer } : null;
  }
}

function titleOf(text) {
  const line = text.trim().split("\n", 1)[0].replace(/\s+/g, " ");
  return line.length > TITLE ? `${[...line].slice(0, TITLE).join("")}…` : line;
}

function spoken({ state, text }) {
  if (state === "stopped") return "Answer stopped";
  if (state === "failed") return "The answer failed";
  return text ? `Answer: ${text.slice(0, SPOKEN)}` : "The answer is empty";
}
