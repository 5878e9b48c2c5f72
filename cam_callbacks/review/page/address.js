// The state of the view in the address of the page.

/** The state in the hash of a page, in the keys that begin with `prefix`; the rest of the hash is left as it is. */
export class HashAddress {
  #page;
  #prefix;
  #first;

  /**
   * @param page the window whose address it is
   * @param prefix what the keys begin with
   * @param first what the hash begins with if there is nothing else in it
   */
  constructor(page = window, prefix = '', first = '') {
    this.#page = page;
    this.#prefix = prefix;
    this.#first = first;
  }

  get #parts() {
    return this.#page.location.hash.slice(1).split('&').filter(Boolean);
  }

  get url() {
    return this.#page.location.href;
  }

  read() {
    const own = this.#parts.map((part) => part.split('=').map(decode)).filter(([key]) => key.startsWith(this.#prefix));
    return Object.fromEntries(own.map(([key, value = '']) => [key.slice(this.#prefix.length), value]));
  }

  write(values) {
    const others = this.#parts.filter((part) => !decode(part).startsWith(this.#prefix));
    if (others.length === 0 && this.#first) others.push(this.#first);
    const own = Object.entries(values).map(([key, value]) => `${this.#prefix}${key}=${encodeURIComponent(value)}`);
    this.#page.history.replaceState(this.#page.history.state, '', `#${[...others, ...own].join('&')}`);
  }

  onChange(callback) {
    this.#page.addEventListener('hashchange', callback);
  }
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
