/* Speak lines of text with espeak-ng and write down when each word starts.
 *
 *   espeak_words OUT.raw OUT.tsv < lines         line:  voice <tab> rate <tab> pitch <tab> range <tab> text
 *
 * OUT.raw  16-bit samples of all utterances, one after the other
 * OUT.tsv  first sample, samples, rate, voice, text, then "character start_ms;" (characters count from 1)
 * `rate` is in words a minute; `pitch` and `range` are espeak's 0..99.
 */
#include <espeak-ng/speak_lib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_WORDS 512
static FILE *raw;
static long samples;
static struct { int character, start_ms; } words[MOST_WORDS];
static int word_count;

static int receive(short *wave, int count, espeak_EVENT *event) {
    if (wave && count > 0) {
        fwrite(wave, 2, count, raw);
        samples += count;
    }
    for (; event->type != espeakEVENT_LIST_TERMINATED; event++) {
        if (event->type != espeakEVENT_WORD || word_count == MOST_WORDS) continue;
        words[word_count].character = event->text_position;
        words[word_count].start_ms = event->audio_position;
        word_count++;
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    raw = fopen(argv[1], "wb");
    FILE *index = fopen(argv[2], "w");
    if (!raw || !index) return 1;
    int rate = espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, NULL, 0);
    espeak_SetSynthCallback(receive);
    char line[8192];
    long first = 0;
    while (fgets(line, sizeof line, stdin)) {
        char *name = strtok(line, "\t\n"), *speed = strtok(NULL, "\t\n"), *pitch = strtok(NULL, "\t\n");
        char *range = strtok(NULL, "\t\n"), *text = strtok(NULL, "\t\n");
        if (!text) continue;
        if (espeak_SetVoiceByName(name) != EE_OK) {
            fprintf(stderr, "espeak_words: no voice %s\n", name);
            return 2;
        }
        espeak_SetParameter(espeakRATE, atoi(speed), 0);
        espeak_SetParameter(espeakPITCH, atoi(pitch), 0);
        espeak_SetParameter(espeakRANGE, atoi(range), 0);
        samples = word_count = 0;
        espeak_Synth(text, strlen(text) + 1, 0, POS_CHARACTER, 0, espeakCHARS_UTF8, NULL, NULL);
        espeak_Synchronize();
        fprintf(index, "%ld\t%ld\t%d\t%s\t%s\t", first, samples, rate, name, text);
        first += samples;
        for (int i = 0; i < word_count; i++) fprintf(index, "%d %d;", words[i].character, words[i].start_ms);
        fprintf(index, "\n");
    }
    return fclose(raw) || fclose(index);
}
