// What starts the report, which has its data and all its code in the page.

import { EmbeddedSource } from './sources.js';
import { show } from './view.js';

const data = document.getElementById('data').textContent;
await show(document.body, new EmbeddedSource(JSON.parse(data)));
