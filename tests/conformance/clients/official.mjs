// What a user of the official Node SDK sees: node official.mjs CONFIG SCENARIO... (see official.py)
import { File } from 'node:buffer';
import fs from 'node:fs';
import OpenAI, { APIError, APIUserAbortError, toFile } from 'openai';
import { told } from './told.mjs';

globalThis.File ??= File; // Debian 12's Node 18 has it here alone

const { base_url: baseURL, key, pictures, client: name } = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL, apiKey: key });
const [photo, other, hole] = ['photo.png', 'other.jpg', 'mask.png'].map((file) => `${pictures}/${file}`);
const read = (path) => fs.createReadStream(path);
const edit = (scenario, fields = {}, options = {}) =>
  client.images.edit({ image: read(photo), prompt: `${name}: ${scenario}`, ...fields }, options);
// A stream can be sent once.
const editAgain = async (scenario) => edit(scenario, { image: await toFile(fs.readFileSync(photo), 'photo.png') });

const scenarios = {
  one: () => edit('one'),
  two: () => edit('two', { image: [read(photo), read(other)] }),
  mask: () => edit('mask', { mask: read(hole) }),
  several: () => edit('several', { n: 2 }),
  url: () => edit('url', { response_format: 'url' }),
  inline: () => edit('inline', { response_format: 'b64_json' }),
  fields: () =>
    edit('fields', {
      quality: 'high', size: '512x512', strength: 0.7, seed: '18446744073709551615', kontext_max_mode: true,
    }),
  dialect: () =>
    client.post('/images/edits', {
      body: { images: [fs.readFileSync(photo, 'base64')], prompt: `${name}: dialect`, seed: 7 },
    }),
  stream: () => edit('stream', { stream: true, partial_images: 2 }),
  broken: () => edit('broken', { stream: true, partial_images: 1 }),
  hang_up: async () => {
    for await (const event of await edit('hang_up', { stream: true, partial_images: 1 })) return [event];
  },
  cancel: () => edit('cancel', {}, { signal: AbortSignal.timeout(1000) }),
  refused: () => edit('refused', { size: '17x17' }),
  unknown: () => edit('unknown', { zoom: 2 }),
  busy: () => editAgain('busy'),
  unready: () => editAgain('unready'),
  lost: () => editAgain('lost'),
  key_unknown: () =>
    client.withOptions({ apiKey: 'sk-nobody' }).images.edit({ image: read(photo), prompt: `${name}: key_unknown` }),
  models: async () => {
    const { data } = await client.models.list();
    const one = await client.models.retrieve(data[0].id);
    return { ids: data.map((model) => model.id), one: one.id, limits: [data[0].limits, one.limits] };
  },
};

async function seen(scenario) {
  const events = [];
  try {
    const result = await scenarios[scenario]();
    if (result[Symbol.asyncIterator] ?? result[Symbol.iterator]) {
      for await (const event of result) events.push(event);
      return { events };
    }
    return { ...result, request_id: result._request_id };
  } catch (error) {
    if (error instanceof APIUserAbortError) return { cancelled: true };
    if (!(error instanceof APIError)) throw error;
    const { status: status_code, param, code, type, message, requestID: request_id } = error;
    return { events, error: { class: error.constructor.name, status_code, param, code, type, message, request_id } };
  }
}

await told(seen);
