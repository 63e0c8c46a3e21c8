/** An edit as a program: curl, Python and Node. */

/** @typedef {import("./request.js").Field} Field */

const PYTHON_OWN = ["image", "mask", "prompt", "model", "n", "size", "response_format", "output_format", "output_compression"];

/**
 * @typedef {{fields: Field[], baseUrl: string, keyed: boolean}} Told `keyed`: whether the gateway wants an API key
 * @type {Record<string, (told: Told) => string>}
 */
export const LANGUAGES = { curl, python, node };

function curl({ fields, baseUrl, keyed }) {
  const lines = [`curl ${shell(`${baseUrl}/images/edits`)}`];
  if (keyed) lines.push('-H "Authorization: Bearer $RETOUCH_API_KEY"');
  for (const { name, text, file } of fields) {
    // --form-string: -F would read files where a value begins with @ or <.
    if (file === undefined) lines.push(`--form-string ${shell(`${name}=${text}`)}`);
    else lines.push(`-F ${shell(`${name}=@"${text.replace(/["\\]/g, "\\$&")}"`)}`);
  }
  return lines.join(" \\\n  ");
}

function python({ fields, baseUrl, keyed }) {
  const { images, rest } = split(fields);
  const opened = images.map(({ text }) => `open(${python_text(text)}, "rb")`);
  const value = ({ text, bare, file }) => {
    if (file !== undefined) return `open(${python_text(text)}, "rb")`;
    if (bare) return text === "true" ? "True" : text;
    return python_text(text);
  };
  const own = rest.filter(({ name }) => PYTHON_OWN.includes(name));
  const extra = rest.filter(({ name }) => !PYTHON_OWN.includes(name));
  const lines = [
    `image=${opened.length === 1 ? opened[0] : `[${opened.join(", ")}]`},`,
    ...own.map((field) => `${field.name}=${value(field)},`),
  ];
  if (extra.length) {
    lines.push(`extra_body={${extra.map((field) => `"${field.name}": ${value(field)}`).join(", ")}},`);
  }
  return [
    ...(keyed ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${python_text(baseUrl)}, api_key=${keyed ? 'os.environ["RETOUCH_API_KEY"]' : '"none"'})`,
    "edited = client.images.edit(",
    ...lines.map((line) => `    ${line}`),
    ")",
    "for image in edited.data:",
    "    print(image.url)",
  ].join("\n");
}

function node({ fields, baseUrl, keyed }) {
  const { images, rest } = split(fields);
  const opened = images.map(({ text }) => `fs.createReadStream(${JSON.stringify(text)})`);
  const value = ({ text, bare, file }) => {
    if (file !== undefined) return `fs.createReadStream(${JSON.stringify(text)})`;
    // Past 2^53 a number would lose digits; a form carries text anyway.
    const whole = /^\d+$/.test(text) && !Number.isSafeInteger(Number(text));
    return bare && !whole ? text : JSON.stringify(text);
  };
  return [
    'import fs from "node:fs";',
    'import OpenAI from "openai";',
    "",
    `const client = new OpenAI({ baseURL: ${JSON.stringify(baseUrl)}, apiKey: ${keyed ? "process.env.RETOUCH_API_KEY" : '"none"'} });`,
    "const edited = await client.images.edit({",
    `  image: ${opened.length === 1 ? opened[0] : `[${opened.join(", ")}]`},`,
    ...rest.map((field) => `  ${field.name}: ${value(field)},`),
    "});",
    "for (const image of edited.data) console.log(image.url);",
  ].join("\n");
}

function split(fields) {
  const isImage = ({ name }) => name.startsWith("image");
  return { images: fields.filter(isImage), rest: fields.filter((field) => !isImage(field)) };
}

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** JSON's escapes are Python's too. What JSON leaves as it is and Python's parser would end a line at is none of text. */
const python_text = (text) => JSON.stringify(text);
