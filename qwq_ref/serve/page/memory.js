/** Small values in the browser. Where it keeps nothing, as with cookies switched off, they last as long as the page. */

function open(name) {
  try {
    const storage = window[name];
    storage.getItem("");
    return storage;
  } catch {
    return null;
  }
}

class Values {
  #own = new Map();

  constructor(name) {
    this.storage = open(name);
  }

  /** Return a text, or null. */
  get(name) {
    return this.storage ? this.storage.getItem(name) : this.#own.get(name) ?? null;
  }

  /** Keep a text. Returns whether there was room. */
  set(name, text) {
    try {
      if (this.storage) this.storage.setItem(name, text);
      else this.#own.set(name, text);
      return true;
    } catch {
      return false;
    }
  }

  remove(name) {
    this.storage?.removeItem(name);
    this.#own.delete(name);
  }

  /** Return the names that begin with a text. */
  names(begin) {
    return [...(this.storage ? Object.keys(this.storage) : this.#own.keys())].filter((name) => name.startsWith(begin));
  }
}

/** Values that stay, and those that end with the window. */
export const local = new Values("localStorage");
export const session = new Values("sessionStorage");
