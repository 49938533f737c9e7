// Image classification with a Twins model on the visitor's device: ONNX Runtime Web, by way of transformers.js.

import { createImageProcessor } from "./image_processor.js";

const TOP_K = 5;
// As in the other Spaces.
const MAX_PIXELS = 50_000_000;
const MAX_ASPECT_RATIO = 20;
// The files of an export, by what runs them.
const BACKENDS = [
  { id: "int8-wasm", precision: "int8", dtype: "q8", device: "wasm", name: "WebAssembly" },
  { id: "float32-wasm", precision: "float32", dtype: "fp32", device: "wasm", name: "WebAssembly" },
  { id: "float16-webgpu", precision: "float16", dtype: "fp16", device: "webgpu", name: "WebGPU" },
];

const element = (id) => document.getElementById(id);
const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

let transformers; // the library
let space; // which model this Space holds, see space.json
let processor; // images to pixels
let model; // the loaded model, with its backend
let image; // what is classified, an ImageBitmap
let camera; // the stream of the webcam
// Each image and each backend that a visitor chooses makes the ones before it obsolete.
let newestImage = 0;
let newestModel = 0;
// Models are loaded and run one at a time.
let work = Promise.resolve();

/** What went wrong, in a sentence for the visitor. */
class PageError extends Error {}

function showError(error) {
  console.error(error);
  const message = error instanceof PageError ? error.message : `Something went wrong (${error.message}): reload the page.`;
  element("error").textContent = message;
  element("error").hidden = false;
  element("progress").hidden = true;
  showStatus("");
}

function clearError() {
  element("error").hidden = true;
}

function showStatus(text) {
  element("status").textContent = text;
  element("status").hidden = !text;
}

function clearAnswer() {
  element("labels").replaceChildren();
  element("details").textContent = "";
}

/** Let the browser draw before the processor is busy. */
function nextFrame() {
  return new Promise((resolve) => {
    // In a tab that is not visible, there are no frames.
    setTimeout(resolve, 100);
    requestAnimationFrame(() => setTimeout(resolve));
  });
}

async function fetchJson(path) {
  const response = await fetch(path).catch(() => ({ ok: false }));
  if (!response.ok) {
    throw new PageError(
      `The model cannot be loaded, because ${path} is missing: reload the page, or assemble the Space with assemble.py.`,
    );
  }
  return response.json();
}

async function start() {
  if (typeof WebAssembly !== "object") {
    throw new PageError("This browser has no WebAssembly, which the model needs: allow it, or use another browser.");
  }
  space = await fetchJson("space.json");
  showModelName();
  offerExamples();
  processor = createImageProcessor(await fetchJson(`${space.folder}/preprocessor_config.json`));
  transformers = await import("@huggingface/transformers").catch((error) => {
    console.error(error);
    throw new PageError("transformers.js cannot be loaded from cdn.jsdelivr.net: check the connection and reload the page.");
  });
  const { env } = transformers;
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = new URL(".", document.baseURI).href;
  const hasGpu = await offerBackends();
  // In a worker, so that the page answers meanwhile. ONNX Runtime Web cannot run WebGPU there.
  env.backends.onnx.wasm.proxy = !hasGpu;
  await loadModel();
}

function showModelName() {
  const name = document.createElement(space.url ? "a" : "span");
  name.textContent = space.model;
  if (space.url) name.href = space.url;
  element("model").replaceChildren(name);
}

/** Show the examples, and open the first one, so that the page has an answer from the beginning. */
function offerExamples() {
  const buttons = space.examples.map(({ file, name }) => {
    const button = document.createElement("button");
    const thumbnail = document.createElement("img");
    button.type = "button";
    button.className = "example";
    thumbnail.src = file;
    thumbnail.alt = `Example: ${name}`;
    button.append(thumbnail);
    on(button, "click", () => openExample(file, thumbnail.alt));
    return button;
  });
  element("examples").replaceChildren(...buttons);
  element("examples").hidden = !buttons.length;
  buttons[0]?.click();
}

/** List what can run the model; whether a GPU is among it. */
async function offerBackends() {
  // float16 on a GPU that has it.
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const available = BACKENDS.filter(({ device }) => device !== "webgpu" || adapter?.features.has("shader-f16"));
  const options = available.map(({ id, precision, name, device }) => {
    const size = megabytes(space.sizes[precision]);
    return new Option(`${precision}, ${name}, ${size} MB${device === "webgpu" ? ", experimental" : ""}`, id);
  });
  element("backend").replaceChildren(...options);
  element("backend").disabled = false;
  return available.some(({ device }) => device === "webgpu");
}

/** Load the model for the chosen backend, and classify the image with it. */
async function loadModel() {
  const turn = ++newestModel;
  const backend = BACKENDS.find(({ id }) => id === element("backend").value);
  clearError();
  clearAnswer();
  work = work.then(async () => {
    if (turn !== newestModel) return;
    await model?.dispose();
    model = undefined;
    showProgress(backend, 0);
    try {
      // `pipeline` takes the architectures that it knows; AutoModel runs any that has one file and takes `pixel_values`.
      model = await transformers.AutoModel.from_pretrained(space.folder, {
        dtype: backend.dtype,
        device: backend.device,
        progress_callback: ({ status, file, loaded }) => {
          if (status === "progress" && file.endsWith(".onnx")) showProgress(backend, loaded);
        },
      });
    } catch (error) {
      console.error(error);
      throw new PageError(
        `The model cannot be loaded in ${backend.precision} on ${backend.name}: reload the page, or choose another backend.`,
      );
    }
    model.backend = backend;
    element("progress").hidden = true;
    showStatus(image ? "" : "The model is ready: choose an image.");
  });
  const loaded = work;
  // What failed does not stop what is asked for next.
  work = work.catch(() => {});
  await loaded;
  if (image && model) await classify();
}

function showProgress({ precision }, loaded) {
  const total = space.sizes[precision];
  element("progress").hidden = false;
  element("progress").value = loaded / total;
  showStatus(
    loaded < total ? `Loading the model: ${megabytes(loaded)} of ${megabytes(total)} MB` : "Starting ONNX Runtime…",
  );
}

/**
 * Show an image and classify it.
 *
 * @param {Blob | Promise<Blob>} source its file, which may still be loading
 * @param {string} name its name
 */
async function openImage(source, name) {
  const turn = ++newestImage;
  clearError();
  clearAnswer();
  try {
    const blob = await source;
    const bitmap = await decode(blob, name);
    if (turn === newestImage) showImage(bitmap, blob, name);
  } catch (error) {
    if (turn !== newestImage) return;
    showImage();
    throw error;
  }
  if (turn === newestImage && model) await classify();
}

function showImage(bitmap, blob, name = "") {
  const preview = element("preview");
  image?.close();
  URL.revokeObjectURL(preview.src);
  image = bitmap;
  preview.hidden = !bitmap;
  preview.alt = name;
  if (bitmap) preview.src = URL.createObjectURL(blob);
  else preview.removeAttribute("src");
}

/** Decode an image: upright, with its colors as they are stored. */
async function decode(blob, name) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" }).catch(
    () => {
      throw new PageError(`${name} is not an image that this browser can read: choose a JPEG, PNG or WebP file.`);
    },
  );
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) {
    throw new PageError(
      `${name} has ${width} x ${height} pixels: choose an image of at most ${MAX_PIXELS / 1e6} megapixels.`,
    );
  }
  if (Math.max(width, height) > MAX_ASPECT_RATIO * Math.min(width, height)) {
    throw new PageError(
      `${name} has ${width} x ${height} pixels: crop it; one side may be at most ${MAX_ASPECT_RATIO} times the other.`,
    );
  }
  return bitmap;
}

async function classify() {
  const turns = [newestImage, newestModel];
  const isObsolete = () => turns[0] !== newestImage || turns[1] !== newestModel;
  showStatus("Classifying…");
  work = work.then(async () => {
    await nextFrame();
    if (isObsolete()) return;
    const start = performance.now();
    const { data, dims } = processor(image);
    const processed = performance.now();
    const { logits } = await model({ pixel_values: new transformers.Tensor("float32", data, dims) });
    const end = performance.now();
    if (isObsolete()) return;
    showStatus("");
    showAnswer(classScores(logits.data), processed - start, end - processed);
  });
  const done = work;
  work = work.catch(() => {});
  await done;
}

/** As transformers' pipeline: a probability of its own for each label if an image can have several, or there is only one. */
function classScores(logits) {
  const { problem_type: problemType } = model.config;
  if (problemType === "regression") return Array.from(logits);
  if (problemType === "multi_label_classification" || logits.length === 1) {
    return Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit)));
  }
  return softmax(logits);
}

/** The name of a label. Configurations leave out the names of labels that have none of their own. */
function labelName(index) {
  return model.config.id2label?.[index] ?? `LABEL_${index}`;
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  return exponentials.map((value) => value / total);
}

function showAnswer(scores, processingTime, modelTime) {
  const best = scores.map((_, index) => index).sort((a, b) => scores[b] - scores[a]);
  element("labels").replaceChildren(
    ...best.slice(0, TOP_K).map((index) => labelItem(labelName(index), scores[index])),
  );
  const { precision, name, device } = model.backend;
  const threads = transformers.env.backends.onnx.wasm.numThreads;
  const runtime = device === "wasm" ? `${name}, ${threads} ${threads === 1 ? "thread" : "threads"}` : name;
  element("details").textContent =
    `${Math.round(modelTime)} ms for the model, ${Math.round(processingTime)} ms to resize the image; ` +
    `${precision}, ${runtime}; one of ${scores.length.toLocaleString("en")} labels`;
}

function labelItem(label, score) {
  const item = document.createElement("li");
  const name = document.createElement("span");
  const percent = document.createElement("span");
  const bar = document.createElement("span");
  const fill = document.createElement("span");
  name.textContent = label;
  percent.textContent = `${(100 * score).toFixed(1)}%`;
  bar.className = "bar";
  bar.setAttribute("aria-hidden", "true");
  fill.style.width = `${100 * score}%`;
  bar.append(fill);
  item.append(name, percent, bar);
  return item;
}

async function openWebcam() {
  clearError();
  closeWebcam();
  if (!navigator.mediaDevices) {
    throw new PageError("No webcam is accessible to this page: choose an image file instead.");
  }
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    throw new PageError(
      error.name === "NotAllowedError"
        ? "The webcam is not allowed on this page: allow it in the browser, or choose an image file."
        : "No webcam can be used: connect one, close other programs that use it, or choose an image file.",
    );
  }
  element("video").srcObject = camera;
  element("camera").hidden = false;
  element("take").focus();
}

function closeWebcam() {
  camera?.getTracks().forEach((track) => track.stop());
  camera = undefined;
  element("camera").hidden = true;
}

async function takePhoto() {
  const video = element("video");
  if (!video.videoWidth) throw new PageError("The webcam has not started yet: try again in a moment.");
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await canvas.convertToBlob();
  closeWebcam();
  element("webcam").focus();
  await openImage(blob, "Photo from the webcam");
}

/** The one image among files that were dropped, pasted or chosen. */
async function openFiles(files, verb) {
  if (files.length !== 1) throw new PageError(`${verb} one image file at a time; got ${files.length}.`);
  await openImage(files[0], files[0].name);
}

function openExample(file, name) {
  return openImage(
    fetch(file).then((response) => response.blob()),
    name,
  );
}

/** Call `action` at an event, and show what goes wrong in it. */
function on(target, event, action) {
  target.addEventListener(event, (details) => Promise.resolve(action(details)).catch(showError));
}

on(element("choose"), "click", () => element("file").click());
on(element("file"), "change", async ({ target }) => {
  const files = [...target.files];
  // So that the same file can be chosen again.
  target.value = "";
  await openFiles(files, "Choose");
});
on(element("webcam"), "click", openWebcam);
on(element("take"), "click", takePhoto);
on(element("close"), "click", () => {
  closeWebcam();
  element("webcam").focus();
});
on(element("backend"), "change", loadModel);
on(document, "paste", ({ clipboardData }) => openFiles(clipboardData.files, "Paste"));
on(document, "dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
on(document, "dragleave", () => document.body.classList.remove("dropping"));
on(document, "drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  await openFiles(event.dataTransfer.files, "Drop");
});

start().catch(showError);
