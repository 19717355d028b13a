/** The messages of a conversation as a tree: an edit or another answer starts a branch, and nothing is lost. */

/** Return an id that no other record has. `crypto.randomUUID` exists in secure contexts only. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Tree {
  /** @param {object[]} messages of one conversation, the oldest first */
  constructor(messages) {
    this.byId = new Map(messages.map((message) => [message.id, message]));
    this.children = new Map();
    for (const message of messages) this.#link(message);
  }

  #link(message) {
    const key = message.parent;
    if (!this.children.has(key)) this.children.set(key, []);
    this.children.get(key).push(message);
  }

  add(message) {
    this.byId.set(message.id, message);
    this.#link(message);
  }

  /** Return the messages from the first one to `leaf`. */
  path(leaf) {
    const path = [];
    for (let at = this.byId.get(leaf); at && path.length <= this.byId.size; at = this.byId.get(at.parent)) path.push(at);
    return path.reverse();
  }

  /** Return the versions of a message: those with the same parent. */
  versions(message) {
    return this.children.get(message.parent) ?? [];
  }

  /** Return the id of the last message of the newest branch behind a message. */
  end(message) {
    let at = message;
    for (let below = this.children.get(at.id); below?.length; below = this.children.get(at.id)) at = below.at(-1);
    return at.id;
  }
}

/** Return the messages of a branch as the API takes them. Reasoning stays out: QwQ's template drops it. */
export function asRequest(path, system) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const { role, text } of path) {
    if (role === "user" || text !== "") messages.push({ role, content: text });
  }
  return messages;
}
