// What TensorBoard imports for the CAM tab.

import { HashAddress } from './address.js';
import { HttpSource } from './sources.js';
import { show } from './view.js';

const PLUGIN = new URL('.', import.meta.url).pathname.split('/').at(-2); // .../data/plugin/cam_callbacks/
const POLL_MS = 10_000;

/** Called by TensorBoard in the iframe of the tab. */
export async function render() {
  document.documentElement.lang = 'en';
  await addStylesheet('./style.css');
  const page = pageWithAddress();
  const view = await show(document.body, new HttpSource(), {
    address: new HashAddress(page, `p.${PLUGIN}.`, PLUGIN),
    poll: POLL_MS,
  });
  followTheme(page, view);
}

function addStylesheet(path) {
  return new Promise((done) => {
    const link = document.createElement('link');
    link.rel = 'stylesheet';
    link.href = new URL(path, import.meta.url);
    link.onload = link.onerror = done;
    document.head.append(link);
  });
}

/** The window whose address the user sees: TensorBoard's, if it is of this origin. It keeps what it does not know. */
function pageWithAddress() {
  try {
    return window.parent.location.hash === undefined ? window : window.parent;
  } catch {
    return window;
  }
}

/** Be dark where TensorBoard is; it marks its body. */
function followTheme(page, view) {
  if (page === window) return;
  const { body } = page.document;
  const follow = () => view.setTheme(body.classList.contains('dark-mode') ? 'dark' : 'light');
  new MutationObserver(follow).observe(body, { attributeFilter: ['class'] });
  follow();
}
