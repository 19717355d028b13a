/** The messages of one branch, as they are and while they grow. */

import { byId } from "./dom.js";
import { MessageView } from "./message.js";

const NEAR = 80; // pixels from the end within which the view follows the text

export class Thread {
  #views = new Map();
  #follow = true;
  #scheduled = false;

  /** @param {object} acts those of `MessageView`, and live(id): what is live of a message, or null */
  constructor(acts) {
    this.acts = acts;
    this.element = byId("thread");
    this.scroller = byId("scroller");
    this.jump = byId("jump");
    this.jump.addEventListener("click", () => this.toEnd());
    let last = 0;
    this.scroller.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this.scroller;
      const near = scrollHeight - scrollTop - clientHeight < NEAR;
      if (near) this.#follow = true;
      else if (scrollTop < last) this.#follow = false; // a person went up; a text that grew is no reason
      last = scrollTop;
      this.jump.hidden = near;
    }, { passive: true });
    new ResizeObserver(() => { if (this.#follow) this.#scroll(); }).observe(this.element);
  }

  /** Show a branch. Views of messages that stay are kept. */
  show(path, tree) {
    const before = this.#views;
    this.#views = new Map();
    for (const message of path) {
      const versions = tree.versions(message);
      const key = `${versions.length}`;
      const kept = before.get(message.id);
      const view = kept?.key === key && kept.message === message ? kept : new MessageView(message, this.acts, versions);
      view.key = key;
      this.#views.set(message.id, view);
      view.update(this.acts.live(message.id));
    }
    this.element.replaceChildren(...[...this.#views.values()].map((view) => view.element));
    byId("welcome").hidden = path.length > 0;
  }

  /** Draw what is new of a message before the next frame. */
  changed(message) {
    this.#views.get(message.id)?.message === message && this.#dirty.add(message.id);
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      for (const id of this.#dirty) this.#views.get(id)?.update(this.acts.live(id));
      this.#dirty.clear();
      if (this.#follow) this.#scroll();
    });
  }

  #dirty = new Set();

  toEnd() {
    this.#follow = true;
    this.#scroll();
  }

  #scroll() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** Return the view of a message that is shown. */
  view(id) {
    return this.#views.get(id);
  }
}
