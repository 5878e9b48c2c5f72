// The event files that a report could not read.

import { el } from './elements.js';
import { plural } from './words.js';

/** Event files that were read in part, and those that were left out; empty where there are none. */
export function skippedFiles({ skipped = [] }) {
  const kinds = [
    ['Read in part', skipped.filter(({ partly }) => partly)],
    ['Left out', skipped.filter(({ partly }) => !partly)],
  ];
  return kinds.filter(([, files]) => files.length > 0).map(([what, files]) =>
    el('details.skipped',
      el('summary', `${what}: ${plural(files.length, 'event file')}`),
      el('ul', files.map(({ file, why }) => el('li', `${file} ${why}`))),
    ),
  );
}
