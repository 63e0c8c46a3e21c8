/** Files come in: picked, dropped anywhere, or pasted. */

import { $ } from "./dom.js";

/** @param {(files: File[], made: boolean) => void} given `made`: there is no such file on a disk */
export function listen(given) {
  $("images").onchange = () => {
    given([...$("images").files], false);
    $("images").value = ""; // the same file may be picked again
  };
  document.ondragover = (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    $("drop").hidden = false;
  };
  document.ondragleave = (event) => {
    if (!event.relatedTarget) $("drop").hidden = true;
  };
  document.ondrop = (event) => {
    $("drop").hidden = true;
    if (!carriesFiles(event)) return;
    event.preventDefault();
    given([...event.dataTransfer.files], false);
  };
  document.onpaste = (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    // Office programs put a picture of a text beside it.
    const text = event.clipboardData?.types.includes("text/plain") && event.target.matches("input, textarea");
    if (!files.length || text) return;
    event.preventDefault();
    given(files, true);
  };
}

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
