// Makes elements of the page. All text comes from data and is set as text, never as HTML.

/** Make elements: `el('div.cards', { title }, child, [children])`; what is null, false or '' is left out. */
const maker = (namespace) => (kind, ...content) => {
  const [tag, ...classes] = kind.split('.');
  const node = document.createElementNS(namespace, tag);
  if (classes.length > 0) node.setAttribute('class', classes.join(' '));
  for (const part of content.flat(Infinity)) {
    if (part == null || part === false || part === '') continue;
    if (typeof part === 'object' && !(part instanceof Node)) setAttributes(node, part);
    else node.append(part);
  }
  return node;
};

/** `onclick` and the like listen; true is an attribute without a value; null and false are left out. */
function setAttributes(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value != null && value !== false) node.setAttribute(name, value === true ? '' : value);
  }
}

export const el = maker('http://www.w3.org/1999/xhtml');
export const svg = maker('http://www.w3.org/2000/svg');

/** Put [value, words] into a select, only if they differ from those that are there, and choose one. */
export function fill(select, options, chosen) {
  const there = [...select.options].map(({ value, text }) => [value, text]);
  if (JSON.stringify(there) !== JSON.stringify(options)) {
    select.replaceChildren(...options.map(([value, words]) => new Option(words, value)));
  }
  select.value = chosen;
}

/** The image of a data URI when it is ready; null if there is none. */
export function decoded(source) {
  return new Promise((done) => {
    if (!source) return void done(null);
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => done(null);
    image.src = source;
  });
}
