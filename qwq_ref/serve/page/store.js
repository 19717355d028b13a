/**
 * Conversations in the browser's database. Nothing leaves the browser.
 *
 * A conversation has {id, title, named, created, updated, leaf}: `leaf` is the last message of the branch that is shown,
 * and `named` tells that a person chose the title. A message has {id, conversation, parent, role, text, reasoning, state, ...}:
 * `parent` is null for a first one. Messages with one parent are versions of each other.
 */

import { local } from "./memory.js";

const NAME = "qwq";
const UNSAVED = "qwq.unsaved."; // begins names in localStorage
const TABLES = ["conversations", "messages"];

/** Open the database. Where the browser has none, as in some private windows, memory takes its place. */
export async function openStore() {
  try {
    return new Store(await opened());
  } catch {
    return new MemoryStore();
  }
}

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      const database = request.result;
      database.createObjectStore("conversations", { keyPath: "id" });
      database.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => reject(request.error);
  });
}

const result = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

class Store {
  lasting = true;

  constructor(database) {
    this.database = database;
    database.onversionchange = () => database.close();
  }

  #table(name, mode = "readonly") {
    return this.database.transaction(name, mode).objectStore(name);
  }

  /** Return all conversations, the latest first. */
  async conversations() {
    return latest(await result(this.#table("conversations").getAll()));
  }

  /** Return the messages of a conversation, the oldest first. */
  async messages(id) {
    return oldest(await result(this.#table("messages").index("conversation").getAll(id)));
  }

  /** Keep a conversation or a message as it is now. */
  putConversation(conversation) {
    return result(this.#table("conversations", "readwrite").put(conversation));
  }

  putMessage(message) {
    return result(this.#table("messages", "readwrite").put(message));
  }

  /** Keep all records, or none. */
  putAll(conversations, messages) {
    const work = this.database.transaction(TABLES, "readwrite");
    for (const each of conversations) work.objectStore("conversations").put(each);
    for (const each of messages) work.objectStore("messages").put(each);
    return new Promise((resolve, reject) => {
      work.oncomplete = () => resolve();
      work.onabort = work.onerror = () => reject(work.error);
    });
  }

  /** Remove a conversation with its messages. Returns the messages. */
  async remove(id) {
    const work = this.database.transaction(TABLES, "readwrite");
    work.objectStore("conversations").delete(id);
    const table = work.objectStore("messages");
    const messages = await result(table.index("conversation").getAll(id));
    for (const message of messages) table.delete(message.id);
    return messages;
  }

  /** Return the ids of conversations with a message that contains a text in lower case. */
  search(text) {
    const found = new Set();
    const request = this.#table("messages").openCursor();
    return new Promise((resolve, reject) => {
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        const cursor = request.result;
        if (!cursor) return resolve(found);
        if (contains(cursor.value, text)) found.add(cursor.value.conversation);
        return cursor.continue();
      };
    });
  }
}

/**
 * Keep messages while the page closes: the database would not finish then. `takeUnsaved` gives them to the store.
 * @param {object[]} messages
 */
export function keepUnsaved(messages) {
  for (const message of messages) local.set(UNSAVED + message.id, JSON.stringify(message)); // or there is no room
}

/** Put what `keepUnsaved` kept into the store. */
export async function takeUnsaved(store) {
  for (const name of local.names(UNSAVED)) {
    let message;
    try {
      message = JSON.parse(local.get(name));
    } catch { /* cut off: there was no room */ }
    local.remove(name);
    if (typeof message?.conversation !== "string") continue;
    const known = await store.messages(message.conversation);
    if (known.some((each) => each.id === message.id && each.state === "writing")) await store.putMessage(message);
  }
}

/** The same, for as long as the page is open. */
class MemoryStore {
  lasting = false;
  #conversations = new Map();
  #messages = new Map();

  async conversations() { return latest([...this.#conversations.values()]); }
  async messages(id) { return oldest([...this.#messages.values()].filter((each) => each.conversation === id)); }
  async putConversation(conversation) { this.#conversations.set(conversation.id, structuredClone(conversation)); }
  async putMessage(message) { this.#messages.set(message.id, structuredClone(message)); }

  async putAll(conversations, messages) {
    for (const each of conversations) await this.putConversation(each);
    for (const each of messages) await this.putMessage(each);
  }

  async remove(id) {
    const messages = await this.messages(id);
    this.#conversations.delete(id);
    for (const message of messages) this.#messages.delete(message.id);
    return messages;
  }

  async search(text) {
    const found = [...this.#messages.values()].filter((each) => contains(each, text));
    return new Set(found.map((each) => each.conversation));
  }
}

const latest = (conversations) => conversations.sort((a, b) => b.updated - a.updated);
const oldest = (messages) => messages.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
const contains = (message, text) => message.text.toLowerCase().includes(text);
