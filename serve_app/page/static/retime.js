/** Times for the words of a text that was edited: words that stayed keep theirs, new ones share the gap. */

const WITHOUT_SPACES = ["zh", "ja", "th", "lo", "km", "my", "yue", "bo"];

/** The words of `text`. `before` are the words that the segment had. */
export function retimed(text, before, segment, language) {
  const pattern = WITHOUT_SPACES.includes(language) ? /\S\p{M}*/gu : /\S+/gu;
  const words = (text.match(pattern) ?? []).map((word) => {
    return { word, start: null, end: null, score: null, speaker: segment.speaker };
  });
  if (!before.some((word) => word.start !== null)) return words;
  const kept = common(before.map((one) => one.word), words.map((one) => one.word));
  for (const [old, place] of kept) words[place] = before[old];
  let place = 0;
  while (place < words.length) {
    if (words[place].start !== null) {
      place++;
      continue;
    }
    let next = place;
    while (next < words.length && words[next].start === null) next++;
    const start = place ? (words[place - 1].end ?? words[place - 1].start) : segment.start;
    const end = Math.max(start, next < words.length ? words[next].start : segment.end);
    share(words, place, next, start, end);
    place = next;
  }
  return words;
}

/** The words of a segment. If it was not aligned, they share its time. */
export function timed(segment, language) {
  const words = segment.words.length ? segment.words : retimed(segment.text, [], segment, language);
  if (words.some((word) => word.start !== null)) return words;
  const shared = [...words];
  share(shared, 0, shared.length, segment.start, segment.end);
  return shared;
}

/** Divides a time among words by their lengths. */
function share(words, from, to, start, end) {
  const total = words.slice(from, to).reduce((sum, { word }) => sum + word.length, 0);
  const rounded = (seconds) => Math.round(seconds * 1000) / 1000;
  for (let place = from, used = 0; place < to; place++) {
    const begun = start + ((end - start) * used) / total;
    used += words[place].word.length;
    words[place] = { ...words[place], start: rounded(begun), end: rounded(start + ((end - start) * used) / total) };
  }
}

/** The longest common subsequence, as pairs of places. Segments are short, so a table does. */
function common(one, other) {
  const width = other.length + 1;
  const lengths = new Uint16Array((one.length + 1) * width);
  for (let a = one.length - 1; a >= 0; a--) {
    for (let b = other.length - 1; b >= 0; b--) {
      lengths[a * width + b] =
        one[a] === other[b]
          ? lengths[(a + 1) * width + b + 1] + 1
          : Math.max(lengths[(a + 1) * width + b], lengths[a * width + b + 1]);
    }
  }
  const pairs = [];
  for (let a = 0, b = 0; a < one.length && b < other.length; ) {
    if (one[a] === other[b]) pairs.push([a++, b++]);
    else if (lengths[(a + 1) * width + b] >= lengths[a * width + b + 1]) a++;
    else b++;
  }
  return pairs;
}
