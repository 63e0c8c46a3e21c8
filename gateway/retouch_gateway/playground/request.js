/** An edit's fields, and the form that carries them. */

/**
 * One field. `text` is what the form carries; `bare` says that JSON would write it without quotes; `file` what is sent
 * under the name `text`.
 * @typedef {{name: string, text: string, bare?: boolean, file?: Blob | null}} Field
 */

/**
 * All fields of an edit, in the order in which they are sent.
 * @param {{images: {name: string, blob: Blob}[], masked: boolean, mask?: Blob | null, prompt: string, knobs: Field[]}} edit
 * @returns {Field[]}
 */
export function fields({ images, masked, mask = null, prompt, knobs }) {
  const name = images.length > 1 ? "image[]" : "image";
  return [
    ...images.map((image) => ({ name, text: image.name, file: image.blob })),
    ...(masked ? [{ name: "mask", text: "mask.png", file: mask }] : []),
    { name: "prompt", text: prompt },
    ...knobs,
    { name: "response_format", text: "url" },
  ];
}

/**
 * What the page asks for besides, to show how far an edit is.
 * @param {string} previews how many of each image
 * @returns {Field[]}
 */
export function watching(previews) {
  const wanted = Number(previews) === 0 ? [] : [{ name: "partial_images", text: previews, bare: true }];
  return [{ name: "stream", text: "true", bare: true }, ...wanted];
}

/**
 * Fields as multipart/form-data. Not FormData's: that turns a prompt's line breaks into CRLF.
 * @param {Field[]} fields
 * @returns {{body: Blob, type: string}}
 */
export function form(fields) {
  const boundary = `retouch-${crypto.getRandomValues(new BigUint64Array(2)).join("-")}`;
  const pieces = fields.flatMap(({ name, text, file }) => {
    const filename = file === undefined ? "" : `; filename="${escaped(text)}"`;
    const head = `--${boundary}\r\ncontent-disposition: form-data; name="${escaped(name)}"${filename}\r\n\r\n`;
    return [head, file ?? text, "\r\n"];
  });
  const body = new Blob([...pieces, `--${boundary}--\r\n`]);
  return { body, type: `multipart/form-data; boundary=${boundary}` };
}

/** As https://html.spec.whatwg.org/#multipart-form-data has it. */
const escaped = (text) => text.replace(/["\r\n]/g, (sign) => encodeURIComponent(sign));
