// What a user of the AI SDK sees, with either provider: node ai.mjs CONFIG SCENARIO... (see official.py)
import fs from 'node:fs';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { APICallError, RetryError, generateImage } from 'ai';
import { told } from './told.mjs';

const { base_url: baseURL, key, pictures, client: name, model } = JSON.parse(process.argv[2]);
const compatible = name === 'ai-compatible';
const provider = (apiKey) =>
  compatible
    ? createOpenAICompatible({ name: 'retouch', baseURL, apiKey })
    : createOpenAI({ baseURL, apiKey });
const [photo, other, hole] = ['photo.png', 'other.jpg', 'mask.png'].map((file) => fs.readFileSync(`${pictures}/${file}`));
const edit = (scenario, { images = [photo], mask, apiKey = key, ...options } = {}) =>
  generateImage({
    model: provider(apiKey).imageModel(model),
    prompt: { text: `${name}: ${scenario}`, images, mask },
    ...options,
  });
const ours = (retouch) => ({ providerOptions: { retouch } });

const scenarios = {
  one: () => edit('one'),
  two: () => edit('two', { images: [photo, other] }),
  mask: () => edit('mask', { mask: hole }),
  several: () => edit('several', { n: 2 }),
  url: () => edit('url', ours({ response_format: 'url' })),
  inline: () => edit('inline', ours({ response_format: 'b64_json' })),
  fields: () =>
    edit('fields', {
      size: '512x512',
      ...ours({ quality: 'high', strength: 0.7, seed: '18446744073709551615', kontext_max_mode: true }),
    }),
  cancel: () => edit('cancel', { abortSignal: AbortSignal.timeout(1000) }),
  refused: () => edit('refused', { size: '17x17' }),
  unknown: () => edit('unknown', ours({ zoom: 2 })),
  busy: () => edit('busy'),
  unready: () => edit('unready'),
  key_unknown: () => edit('key_unknown', { apiKey: 'sk-nobody' }),
};

async function seen(scenario) {
  try {
    const { images, usage, warnings } = await scenarios[scenario]();
    return { data: images.map(({ base64, mediaType }) => ({ b64_json: base64, mediaType })), usage, warnings };
  } catch (error) {
    if (error.name === 'TimeoutError' || error.name === 'AbortError') return { cancelled: true };
    const last = RetryError.isInstance(error) ? error.lastError : error;
    if (!APICallError.isInstance(last)) throw error;
    const { param, code, type, message } = JSON.parse(last.responseBody).error;
    const request_id = last.responseHeaders['x-request-id'];
    const told = { status_code: last.statusCode, param, code, type, message, request_id };
    return { error: { class: last.constructor.name, ...told } };
  }
}

await told(seen);
