/* Speak lines of text with flite and write down when each word starts and ends.
 *
 *   flite_words OUT.raw OUT.tsv < lines          line:  voice <tab> stretch <tab> pitch <tab> text
 *
 * OUT.raw  16-bit samples of all utterances, one after the other
 * OUT.tsv  first sample, samples, rate, voice, text, then "word start end phone-phone;" in seconds
 * `stretch` scales durations, `pitch` scales the voice's own mean pitch.
 */
#include <flite/flite.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

cst_voice *register_cmu_us_slt(const char *);
cst_voice *register_cmu_us_rms(const char *);
cst_voice *register_cmu_us_awb(const char *);
cst_voice *register_cmu_us_kal16(const char *);

typedef struct {
    const char *name;
    cst_voice *(*load)(const char *);
    cst_voice *voice;
    float pitch; /* the voice's own mean, Hz */
} speaker;

static speaker speakers[] = {
    {"slt", register_cmu_us_slt, NULL, 0},
    {"rms", register_cmu_us_rms, NULL, 0},
    {"awb", register_cmu_us_awb, NULL, 0},
    {"kal16", register_cmu_us_kal16, NULL, 0},
};

static speaker *find(const char *name) {
    for (size_t i = 0; i < sizeof speakers / sizeof *speakers; i++) {
        speaker *found = &speakers[i];
        if (strcmp(found->name, name)) continue;
        if (!found->voice) {
            found->voice = found->load(NULL);
            found->pitch = get_param_float(found->voice->features, "int_f0_target_mean", 100.0);
        }
        return found;
    }
    fprintf(stderr, "flite_words: no voice %s\n", name);
    exit(2);
}

static void write_word(FILE *index, cst_item *word) {
    fprintf(index, "%s %.3f %.3f ", ffeature_string(word, "name"),
            ffeature_float(word, "R:SylStructure.daughter1.daughter1.R:Segment.p.end"),
            ffeature_float(word, "R:SylStructure.daughtern.daughtern.R:Segment.end"));
    const char *separator = "";
    for (cst_item *syllable = item_daughter(item_as(word, "SylStructure")); syllable; syllable = item_next(syllable))
        for (cst_item *phone = item_daughter(syllable); phone; phone = item_next(phone)) {
            fprintf(index, "%s%s", separator, ffeature_string(phone, "name"));
            separator = "-";
        }
    fputc(';', index);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    FILE *raw = fopen(argv[1], "wb"), *index = fopen(argv[2], "w");
    if (!raw || !index) return 1;
    flite_init();
    char line[8192];
    long first = 0;
    while (fgets(line, sizeof line, stdin)) {
        char *name = strtok(line, "\t\n"), *stretch = strtok(NULL, "\t\n");
        char *pitch = strtok(NULL, "\t\n"), *text = strtok(NULL, "\t\n");
        if (!text) continue;
        speaker *s = find(name);
        feat_set_float(s->voice->features, "duration_stretch", atof(stretch));
        feat_set_float(s->voice->features, "int_f0_target_mean", atof(pitch) * s->pitch);
        cst_utterance *utterance = flite_synth_text(text, s->voice);
        cst_wave *wave = utt_wave(utterance);
        fwrite(wave->samples, 2, wave->num_samples, raw);
        fprintf(index, "%ld\t%d\t%d\t%s\t%s\t", first, wave->num_samples, wave->sample_rate, name, text);
        first += wave->num_samples;
        for (cst_item *word = relation_head(utt_relation(utterance, "Word")); word; word = item_next(word))
            write_word(index, word);
        fprintf(index, "\n");
        delete_utterance(utterance);
    }
    return fclose(raw) || fclose(index);
}
