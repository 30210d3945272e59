// How does Cloudflare's own local R2 come to stand on this machine, with the faults that a test asks for?
//
// miniflare, behind a proxy that answers `Expect: 100-continue`, which miniflare never does. The proxy counts multipart
// uploads that nobody ended, keeps R2's limit of one write a second a key when told to, and fails as it is told.
// Started by `renderdispatch.testing.local_r2`; it ends when its standard input does.

import http from "node:http";
import { createRequire } from "node:module";

const config = JSON.parse(process.argv[2]);
const { Miniflare } = createRequire(config.modules + "/")("miniflare");

const s3Credentials = { accessKeyId: config.accessKeyId, secretAccessKey: config.secretAccessKey };
const miniflare = new Miniflare({
  modules: true,
  script: "export default { fetch() { return new Response(null, { status: 404 }); } }",
  r2Buckets: Object.fromEntries(config.buckets.map((id, n) => [`B${n}`, { id, s3Credentials }])),
  r2Persist: config.folder,
  host: "127.0.0.1",
  port: 0,
});
const behind = await miniflare.ready;
// It closes a connection whose body it did not read, after its answer: whoever took that one next would get none.
const agent = new http.Agent({ keepAlive: false, maxSockets: 64 });

const openUploads = new Map(); // upload id -> path
const lastWrites = new Map(); // path -> when its last write was admitted, in ms
let counts = {}; // "PUT 200" -> how many
let operations = {}; // "GetObject" -> how many requests came
let faults = []; // { kind, method, key, afterBytes, times }
let throttled = false;

const HOP_BY_HOP = ["connection", "expect", "keep-alive", "transfer-encoding"];
const WRITES = ["PUT", "POST", "DELETE"];
const CODES = { 403: "AccessDenied", 429: "SlowDown", 500: "InternalError", 503: "ServiceUnavailable" };

function refuse(response, status) {
  const code = CODES[status] ?? "Error";
  count(response.req.method, status);
  response.writeHead(status, { "content-type": "application/xml", connection: "close" });
  response.end(`<?xml version="1.0" encoding="UTF-8"?><Error><Code>${code}</Code><Message>as told</Message></Error>`);
}

function count(method, status) {
  counts[`${method} ${status}`] = (counts[`${method} ${status}`] ?? 0) + 1;
}

// By the names of R2's price list.
function operationOf(method, url) {
  const asked = url.searchParams;
  if (method === "POST") return asked.has("delete") ? "DeleteObjects" : asked.has("uploads") ? "CreateMultipartUpload" : "CompleteMultipartUpload";
  if (method === "DELETE") return asked.has("uploadId") ? "AbortMultipartUpload" : "DeleteObject";
  if (method === "PUT") return asked.has("partNumber") ? "UploadPart" : "PutObject";
  if (method === "HEAD") return "HeadObject";
  return asked.has("list-type") ? "ListObjects" : "GetObject";
}

function tooFast(request, url) {
  const part = url.searchParams.has("partNumber") || url.searchParams.has("uploads");
  if (!throttled || part || !WRITES.includes(request.method)) return false;
  const now = performance.now();
  if (now - (lastWrites.get(url.pathname) ?? -Infinity) < 1000) return true;
  lastWrites.set(url.pathname, now);
  return false;
}

function takeFault(request, url) {
  const path = decodeURIComponent(url.pathname);
  const found = faults.find((f) => (!f.method || f.method === request.method) && path.includes(f.key));
  if (found && --found.times <= 0) faults = faults.filter((f) => f !== found);
  return found;
}

function fail(kind, request, response) {
  if (kind === "stall") return count(request.method, kind);
  if (kind !== "reset" && !response.headersSent) return refuse(response, Number(kind));
  count(request.method, "reset");
  request.socket.resetAndDestroy();
}

// Passes at most `limit` bytes from one stream to the other, then calls `stop`; with no limit, all of them.
function pass(from, to, limit, stop) {
  if (limit === undefined) return from.pipe(to);
  if (limit === 0) return stop();
  let passed = 0;
  from.on("data", (chunk) => {
    if (passed >= limit) return;
    to.write(chunk.subarray(0, limit - passed));
    passed += chunk.length;
    if (passed >= limit) {
      from.pause();
      stop();
    }
  });
  from.on("end", () => passed < limit && stop());
}

function handle(request, response) {
  const url = new URL(request.url, "http://local");
  if (url.pathname === "/-/control") return control(request, response);
  const operation = operationOf(request.method, url);
  operations[operation] = (operations[operation] ?? 0) + 1;
  const fault = takeFault(request, url);
  if (tooFast(request, url)) return request.resume().on("end", () => refuse(response, 429));
  const upload = request.method === "PUT" || request.method === "POST";
  const early = fault && upload && fault.kind !== "lost-answer";
  const refused = fault && !upload && !["reset", "stall", "lost-answer"].includes(String(fault.kind));
  if (refused) return refuse(response, Number(fault.kind));

  const headers = { ...request.headers };
  for (const name of HOP_BY_HOP) delete headers[name];
  if (!upload) delete headers["content-length"];
  const options = { host: behind.hostname, port: behind.port, method: request.method, path: request.url, headers, agent };
  const inner = http.request(options, (answer) => {
    if (fault?.kind === "lost-answer") {
      track(request, url, answer);
      return answer.resume().on("end", () => fail("reset", request, response));
    }
    track(request, url, answer);
    count(request.method, answer.statusCode);
    response.writeHead(answer.statusCode, answer.headers);
    pass(answer, response, fault && !upload ? fault.afterBytes : undefined, () => fail(fault.kind, request, response));
  });
  inner.on("error", () => response.writableEnded || request.socket.destroy());
  response.on("finish", () => request.unpipe(inner).resume()); // an early refusal: let the sender come to its end
  response.on("close", () => inner.destroy());
  pass(request, inner, early ? fault.afterBytes : undefined, () => {
    inner.destroy();
    fail(fault.kind, request, response);
  });
}

function track(request, url, answer) {
  const id = url.searchParams.get("uploadId");
  if (id && ["POST", "DELETE"].includes(request.method) && [200, 204].includes(answer.statusCode)) openUploads.delete(id);
  if (request.method !== "POST" || !url.searchParams.has("uploads")) return;
  let body = "";
  answer.on("data", (chunk) => (body += chunk));
  answer.on("end", () => openUploads.set(/<UploadId>(.*)<\/UploadId>/.exec(body)?.[1], url.pathname));
}

// POST what to do, as { throttled?, faults?, forget? }; the answer says what was seen.
function control(request, response) {
  let body = "";
  request.on("data", (chunk) => (body += chunk));
  request.on("end", () => {
    const told = JSON.parse(body);
    throttled = told.throttled ?? throttled;
    faults = told.faults ?? faults;
    if (told.forget) [counts, operations] = [{}, {}, openUploads.clear(), lastWrites.clear()];
    response.end(JSON.stringify({ openUploads: [...openUploads.values()], counts, operations, faults, throttled }));
  });
}

const server = http.createServer({ requestTimeout: 0, maxHeaderSize: 65536 }, handle);
server.on("checkContinue", (request, response) => {
  response.writeContinue();
  handle(request, response);
});
server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: server.address().port })));

process.stdin.resume().on("end", async () => {
  await miniflare.dispose();
  process.exit(0);
});
