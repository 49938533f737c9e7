// Images to pixels as the Twins image processor makes them.
//
// Written out here, because transformers.js resizes with a canvas, whatever `resample` of preprocessor_config.json asks
// for, and the interpolation of a canvas differs from browser to browser. This is Pillow's: the same filters, widened when
// an image is reduced (antialiasing), with the same rounding to 8 bits after each of the two passes.

// The filters by the numbers that Pillow gives them: how far each reaches, and its weight at a distance from the center.
const FILTERS = {
  1: { name: "lanczos", support: 3, weight: (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
  2: { name: "bilinear", support: 1, weight: (x) => Math.max(1 - Math.abs(x), 0) },
  3: { name: "bicubic", support: 2, weight: bicubic },
};
// Pillow computes with weights that are multiples of this.
const WEIGHT_UNIT = 2 ** -22;
// Images are read in strips of about so many pixels: a canvas of a whole photograph is more than some phones allow.
const STRIP_PIXELS = 2 ** 20;

/**
 * An image processor.
 *
 * @param {object} settings contents of preprocessor_config.json
 * @returns {(image: ImageBitmap) => {data: Float32Array, dims: number[]}} the pixels as `(1, 3, height, width)`, normalized
 * @throws {Error} if the settings ask for something that is not done here
 */
export function createImageProcessor(settings) {
  const { do_resize, do_center_crop, do_rescale, do_normalize, do_pad, resample, size, crop_size } = settings;
  const filter = FILTERS[resample];
  if (do_pad) throw new Error("preprocessor_config.json asks for do_pad, but images are not padded here.");
  if (do_resize && !filter) {
    const known = Object.entries(FILTERS).map(([number, { name }]) => `${number} (${name})`);
    throw new Error(`preprocessor_config.json asks for resample ${resample}; supported are ${known.join(", ")}.`);
  }
  const scale = do_rescale ? settings.rescale_factor : 1;
  const mean = do_normalize ? settings.image_mean : [0, 0, 0];
  const std = do_normalize ? settings.image_std : [1, 1, 1];

  return (image) => {
    const [width, height] = do_resize ? resizedSize(image, size) : [image.width, image.height];
    const pixels = resize(image, width, height, filter ?? FILTERS[3]);
    const crop = do_center_crop ? crop_size : { height, width };
    const top = cropStart(height, crop.height);
    const left = cropStart(width, crop.width);
    const data = new Float32Array(3 * crop.height * crop.width);
    let position = 0;
    for (let channel = 0; channel < 3; channel++) {
      for (let y = top; y < top + crop.height; y++) {
        for (let x = left; x < left + crop.width; x++) {
          // Zeros around images that are smaller than the crop.
          const inside = y >= 0 && y < height && x >= 0 && x < width;
          const value = inside ? pixels[3 * (y * width + x) + channel] : 0;
          data[position++] = (value * scale - mean[channel]) / std[channel];
        }
      }
    }
    return { data, dims: [1, 3, crop.height, crop.width] };
  };
}

/** Width and height after resizing. */
function resizedSize({ width, height }, size) {
  const edge = size.shortest_edge;
  if (!edge) return [size.width, size.height];
  return width <= height
    ? [edge, Math.trunc((edge * height) / width)]
    : [Math.trunc((edge * width) / height), edge];
}

/** Where a centered crop begins; below zero if the image is smaller than the crop. */
function cropStart(length, cropLength) {
  const rest = length - cropLength;
  // An odd pixel of padding is at the bottom or right.
  if (rest < 0) return -Math.floor(-rest / 2);
  const half = Math.floor(rest / 2);
  // Half a pixel is rounded to the even number, as in Python.
  return rest % 2 && half % 2 ? half + 1 : half;
}

/** The RGB values of an image of another size, on white where it is transparent. */
function resize(image, width, height, filter) {
  // Sums begin with a half, and are rounded down: to the nearest integer. A clamped array keeps them from 0 to 255.
  const columns = resamplingWeights(image.width, width, filter);
  const rows = resamplingWeights(image.height, height, filter);
  // First along the rows: as many as before, of the new width.
  const narrow = new Uint8ClampedArray(3 * image.height * width);
  let position = 0;
  for (const strip of readStrips(image)) {
    for (let row = 0; row < strip.length; row += 4 * image.width) {
      for (const { first, weights } of columns) {
        let red = 0.5;
        let green = 0.5;
        let blue = 0.5;
        let index = row + 4 * first;
        for (let k = 0; k < weights.length; k++, index += 4) {
          red += weights[k] * strip[index];
          green += weights[k] * strip[index + 1];
          blue += weights[k] * strip[index + 2];
        }
        narrow[position++] = Math.floor(red);
        narrow[position++] = Math.floor(green);
        narrow[position++] = Math.floor(blue);
      }
    }
  }
  const resized = new Uint8ClampedArray(3 * height * width);
  position = 0;
  for (const { first, weights } of rows) {
    for (let column = 0; column < 3 * width; column++) {
      let sum = 0.5;
      let index = 3 * width * first + column;
      for (let k = 0; k < weights.length; k++, index += 3 * width) sum += weights[k] * narrow[index];
      resized[position++] = Math.floor(sum);
    }
  }
  return resized;
}

/** The RGBA values of an image, some of its rows at a time. */
function* readStrips(image) {
  const stripHeight = Math.min(Math.max(Math.floor(STRIP_PIXELS / image.width), 1), image.height);
  const canvas = new OffscreenCanvas(image.width, stripHeight);
  // In memory, not on a graphics card: those round in their own ways.
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  for (let top = 0; top < image.height; top += stripHeight) {
    context.fillRect(0, 0, image.width, stripHeight);
    context.drawImage(image, 0, -top);
    yield context.getImageData(0, 0, image.width, Math.min(stripHeight, image.height - top)).data;
  }
}

/** For each output pixel along one side, the first input pixel that it is made of, and their weights. */
function resamplingWeights(inputLength, outputLength, { support, weight }) {
  const scale = inputLength / outputLength;
  // Antialiasing: the filter covers all the pixels that become one.
  const width = Math.max(scale, 1);
  return Array.from({ length: outputLength }, (_, index) => {
    const center = (index + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support * width + 0.5), 0);
    const end = Math.min(Math.trunc(center + support * width + 0.5), inputLength);
    const weights = Float64Array.from({ length: end - first }, (_, k) => weight((first + k - center + 0.5) / width));
    const total = weights.reduce((sum, value) => sum + value, 0);
    return { first, weights: weights.map((value) => Math.round(value / total / WEIGHT_UNIT) * WEIGHT_UNIT) };
  });
}

function bicubic(x) {
  const distance = Math.abs(x);
  if (distance < 1) return (1.5 * distance - 2.5) * distance * distance + 1;
  if (distance < 2) return ((-0.5 * distance + 2.5) * distance - 4) * distance + 2;
  return 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}
