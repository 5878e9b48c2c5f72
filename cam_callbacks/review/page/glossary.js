// What the numbers mean: the glossary, and the buttons that lead to its entries.

import { el } from './elements.js';

const measuresByClass = new Set();

/** Whether a measure is shown for each class; known once the glossary is read. */
export const isByClass = (measure) => measuresByClass.has(measure);

/** The terms of a source, folded up. */
export class Glossary {
  #list = el('dl');
  node = el('details.glossary', el('summary', 'What the numbers mean'), this.#list);

  /** Read the terms, unless they are there already. */
  async read(source) {
    if (this.#list.childElementCount > 0) return;
    const terms = await source.terms();
    for (const { name } of terms.filter((each) => each.by_class)) measuresByClass.add(name);
    this.#list.replaceChildren(...terms.map(entry));
  }
}

const entry = ({ name, definition, chance }) =>
  el('div', { 'data-term': name },
    el('dt', name),
    el('dd', definition, chance && el('small', ` By chance: ${chance}.`)),
  );

/** A button that leads to what a number means. */
export function term(name, text = name) {
  return el('button.term', { type: 'button', title: 'What this number means', onclick: () => explain(name) }, text);
}

function explain(name) {
  const glossary = document.querySelector('.screen .glossary');
  const entries = [...glossary.querySelectorAll('[data-term]')];
  const found =
    entries.find(({ dataset }) => dataset.term === name) ??
    entries.find(({ dataset: { term: form } }) => form.startsWith('…') && name.endsWith(form.slice(1)));
  glossary.open = true;
  glossary.querySelectorAll('.marked').forEach((node) => node.classList.remove('marked'));
  found?.classList.add('marked');
  (found ?? glossary).scrollIntoView({ block: found ? 'center' : 'start', behavior: 'smooth' });
  glossary.querySelector('summary').focus({ preventScroll: true });
}
