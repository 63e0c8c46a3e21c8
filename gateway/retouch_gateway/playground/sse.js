/** Server-sent events of a fetched body: EventSource can send no form. */

/**
 * The events and comments of a stream, as they come; an event that was cut off is none.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<{comment: string} | {event: string, data: string}>}
 */
export async function* events(body) {
  let event = "message";
  let data = [];
  for await (const line of lines(body)) {
    if (line === "") {
      if (data.length) yield { event, data: data.join("\n") };
      event = "message";
      data = [];
    } else if (line.startsWith(":")) {
      yield { comment: line.slice(1).trim() };
    } else {
      const [, name, value] = line.match(/^([^:]*):? ?(.*)$/s) ?? [];
      if (name === "event") event = value;
      if (name === "data") data.push(value);
    }
  }
}

/** Without joining a long line anew for each piece of it: a picture is one line of megabytes. */
async function* lines(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let begun = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const [first, ...others] = decoder.decode(value, { stream: true }).split("\n");
      begun.push(first);
      for (const next of others) {
        yield begun.join("").replace(/\r$/, "");
        begun = [next];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
