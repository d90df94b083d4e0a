/* One step of a whole pipeline over (batch, rows, cols), in one pass over the elements.

   The twin of Pipeline.step, compiled for one composition:
     -DRULE=ADAMW|LION  -DRATIO=DIVIDE|ATAN2          the rule; Lion has neither ratio nor square
     -DMOMENTUM=, -DSQUARE= FULL|HALF|RANK1|NONE      where its slots live
     -DWEIGHTS=, -DGRAD= FULL|HALF  -DROUNDING=NEAREST|STOCHASTIC
   The arithmetic and its order are those of the parts in Python, contracted where torch contracts.
   Sums have a fixed order, whatever the number of threads. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define NONE 0
#define FULL 1  /* fp32 */
#define HALF 2  /* bf16, rounded stochastically */
#define RANK1 3 /* row and column sums, and a bit for the sign */
#define ADAMW 1
#define LION 2
#define DIVIDE 1
#define ATAN2 2
#define NEAREST 1
#define STOCHASTIC 2

#define SUMS (MOMENTUM == RANK1 || SQUARE == RANK1)
#define CHUNK 1024 /* elements whose noise and signs are at hand; a multiple of 8 */
#define TINY 1.17549435e-38f

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "halves of noise words and packed signs are laid out for little-endian machines"
#endif

typedef struct {
    void *const *weights; /* of each parameter of the batch */
    const void *const *grads;
    void *momentum, *square; /* dense values of the batch, as all that follows */
    float *momentum_row, *momentum_col, *square_row, *square_col;
    uint8_t *sign;
    float *partial;         /* (batch, blocks, 2, cols): column sums of a block of rows */
    double *squares;        /* (batch, blocks): sums of the gradient's squares */
    float *norms;           /* (batch): of the gradients */
    const int32_t *numbers; /* (batch): the parameters', which seed their noise */
    int64_t rows, cols;
    int64_t block, blocks; /* elements in a block: a multiple of 8, whole rows if SUMS; their count */
    uint32_t salts[3];     /* of the weights', the momentum's and the square's noise */
    float side;            /* -1 to maximise, else 1 */
    float look, pull, keep_square, pull_square; /* weights in averages, see parts.py */
    float eps, shrink, lr;
} Job;

/* What a chunk's elements need at hand. */
typedef struct {
    uint16_t weights[CHUNK], momentum[CHUNK], square[CHUNK]; /* noise */
    uint16_t negative[CHUNK];                       /* the momentum's sign, in the top bit */
    float momentum_row[CHUNK], square_row[CHUNK];   /* several rows' factors, spread */
    float momentum_size[CHUNK], square_size[CHUNK]; /* several rows' new |m| and v */
} Chunk;

/* Factors of a strip's elements, and sums that will replace them. */
typedef struct {
    const float *momentum_row, *square_row, *momentum_col, *square_col;
    float *momentum_sums, *square_sums; /* of columns */
    float momentum_total, square_total; /* of the row, if it is a single one */
    float momentum_least, square_least; /* the smallest positive factors of columns */
    double grad_squares;                /* summed over the block */
} Factors;

#if defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
static inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
#else
static inline float fused(float a, float b, float c) { return a * b + c; }
#endif

static inline uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float widen(uint16_t half) { return float_of((uint32_t)half << 16); }

/* A carry out of NaN's mantissa would make it infinite or zero. */
static inline uint16_t round_stochastic(float x, uint16_t noise)
{
    return x != x ? 0x7FC0 : (uint16_t)((bits_of(x) + noise) >> 16);
}

static inline uint16_t round_nearest(float x)
{
    uint32_t bits = bits_of(x);
    return x != x ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

static inline float lerp(float start, float end, float weight)
{
    float near = weight < 0.5f ? start : end, by = weight < 0.5f ? weight : weight - 1;
    return fused(by, end - start, near);
}

/* Rank1.read; NaN stays NaN. Where nothing vanishes there is nothing to clamp. */
static inline float outer(float row, float col, int clamp)
{
    float x = row * col, least = row > 0 && col > 0 ? TINY : 0;
    return clamp && x < least ? least : x;
}

/* For x >= 0; the polynomial is that of SLEEF's atan2f (3.5 units in the last place). */
static inline float atan2_right(float y, float x)
{
    float size = fabsf(y), small = size < x ? size : x, large = size < x ? x : size;
    float s = small == large ? (large > 0) + (large != large ? large : 0) : small / large;
    float t = s * s, u = 0.00282363896f;
    u = fused(u, t, -0.0159569029f);
    u = fused(u, t, 0.0425049886f);
    u = fused(u, t, -0.0748900920f);
    u = fused(u, t, 0.106347933f);
    u = fused(u, t, -0.142027363f);
    u = fused(u, t, 0.199926957f);
    u = fused(u, t, -0.333331019f);
    s = fused(s, t * u, s);
    s = size > x ? 1.57079633f - s : s;
    return copysignf(s, y);
}

/* 16 bits for each of `count` elements from element `first` (even) on, as noise.py draws them: a
   word serves two neighbours. Its draw is signed: flipping the top bits makes it 0..65535. */
static void draw(uint16_t *noise, uint32_t key, int64_t first, int64_t count)
{
    uint32_t start = (uint32_t)(first / 2), words[CHUNK / 2];
    int64_t num_words = (count + 1) / 2;
#pragma omp simd
    for (int64_t i = 0; i < num_words; i++) {
        uint32_t word = ((start + (uint32_t)i) * 0x9E3779B9u) ^ key;
        word = (word ^ (word >> 16)) * 0x85EBCA6Bu;
        word = (word ^ (word >> 13)) * 0xC2B2AE35u;
        words[i] = word ^ (word >> 16) ^ 0x80008000u;
    }
    memcpy(noise, words, 2 * (size_t)count);
}

/* A byte's bits to the tops of eight bytes, the lowest first, and back, by products without
   carries. Packed signs are 1 where the momentum is not negative. */
#define ONES 0x0101010101010101u

static void unpack_signs(uint16_t *wide, const uint8_t *packed, int64_t count)
{
    uint8_t negative[CHUNK];
    for (int64_t i = 0; i < (count + 7) / 8; i++) {
        uint64_t bits = (uint8_t)~packed[i] * ONES & 0x8040201008040201u;
        uint64_t tops = (bits + ONES * 0x7F) & ONES * 0x80;
        memcpy(negative + 8 * i, &tops, 8);
    }
    for (int64_t i = 0; i < count; i++)
        wide[i] = (uint16_t)(negative[i] << 8);
}

static void pack_signs(uint8_t *packed, const uint16_t *wide, int64_t count)
{
    uint8_t negative[CHUNK];
    for (int64_t i = 0; i < count; i++)
        negative[i] = (uint8_t)(wide[i] >> 8);
    for (int64_t i = count; i % 8; i++)
        negative[i] = 0x80; /* what pads the last byte is 0 */
    for (int64_t i = 0; i < (count + 7) / 8; i++) {
        uint64_t tops;
        memcpy(&tops, negative + 8 * i, 8);
        packed[i] = (uint8_t)~(((tops >> 7 & ONES) * 0x0102040810204080u) >> 56);
    }
}

/* Elements [at, at + count) of the parameter, `from` in the chunk: part of one row, or of several
   rows whose factors are spread. */
static inline __attribute__((always_inline)) void advance(const Job *job, Chunk *chunk,
                                                          Factors *factors, int64_t at,
                                                          int64_t from, int64_t count, int several,
                                                          int clamp)
{
    const Job j = *job;
    const Factors f = *factors;
    float *weights = (float *)*j.weights + at, *momentum = (float *)j.momentum + at;
    float *square = (float *)j.square + at;
    uint16_t *weights_half = (uint16_t *)*j.weights + at;
    uint16_t *momentum_half = (uint16_t *)j.momentum + at;
    uint16_t *square_half = (uint16_t *)j.square + at;
    const float *grad = (const float *)*j.grads + at;
    const uint16_t *grad_half = (const uint16_t *)*j.grads + at;
    uint16_t *negative = chunk->negative + from;
    const float one_momentum = several || MOMENTUM != RANK1 ? 0 : *f.momentum_row;
    const float one_square = several || SQUARE != RANK1 ? 0 : *f.square_row;
    float momentum_total = 0, square_total = 0, grad_squares = 0;
#pragma omp simd reduction(+ : momentum_total, square_total, grad_squares)
    for (int64_t i = 0; i < count; i++) {
        float g = j.side * (GRAD == HALF ? widen(grad_half[i]) : grad[i]);
        float w = WEIGHTS == HALF ? widen(weights_half[i]) : weights[i];
        float m = g, u;
        grad_squares += g * g;
        if (MOMENTUM == RANK1) {
            float row = several ? f.momentum_row[i] : one_momentum;
            m = outer(row, f.momentum_col[i], clamp);
            m = float_of(bits_of(m) | (uint32_t)negative[i] << 16);
        } else if (MOMENTUM != NONE) {
            m = MOMENTUM == HALF ? widen(momentum_half[i]) : momentum[i];
        }

        if (RULE == LION) {
            float c = lerp(g, m, j.look);
            m = lerp(m, g, j.pull);
            u = (float)((c > 0) - (c < 0));
        } else {
            float v;
            if (SQUARE == RANK1) {
                float row = several ? f.square_row[i] : one_square;
                v = outer(row, f.square_col[i], clamp);
            } else {
                v = SQUARE == HALF ? widen(square_half[i]) : square[i];
            }
            if (MOMENTUM != NONE)
                m = lerp(m, g, j.pull);
            v = fused(j.pull_square * g, g, v * j.keep_square);
            float root = sqrtf(v);
            u = RATIO == ATAN2 ? atan2_right(m, root) * 1.27323954f : m / (root + j.eps);
            if (SQUARE == RANK1) {
                f.square_sums[i] += v;
                square_total += v;
                if (several)
                    chunk->square_size[i] = v;
            } else if (SQUARE == HALF) {
                square_half[i] = round_stochastic(v, chunk->square[from + i]);
            } else {
                square[i] = v;
            }
        }

        if (MOMENTUM == RANK1) {
            f.momentum_sums[i] += fabsf(m);
            momentum_total += fabsf(m);
            if (several)
                chunk->momentum_size[i] = fabsf(m);
            negative[i] = m >= 0 ? 0 : 0x8000;
        } else if (MOMENTUM == HALF) {
            momentum_half[i] = round_stochastic(m, chunk->momentum[from + i]);
        } else if (MOMENTUM == FULL) {
            momentum[i] = m;
        }

        w = fused(u, -j.lr, w * j.shrink);
        if (WEIGHTS == FULL)
            weights[i] = w;
        else if (ROUNDING == STOCHASTIC)
            weights_half[i] = round_stochastic(w, chunk->weights[from + i]);
        else
            weights_half[i] = round_nearest(w);
    }
    factors->momentum_total += momentum_total;
    factors->square_total += square_total;
    factors->grad_squares += grad_squares;
}

static float least_positive(const float *x, int64_t count)
{
    float least = INFINITY;
    for (int64_t i = 0; i < count; i++)
        least = x[i] > 0 && x[i] < least ? x[i] : least;
    return least;
}

/* Whether some product of the row's factor may be less than normal; if it is NaN, too. */
static int vanishes(const Job *job, const Factors *factors, int64_t row)
{
    return (MOMENTUM == RANK1 && !(job->momentum_row[row] * factors->momentum_least >= TINY)) ||
           (SQUARE == RANK1 && !(job->square_row[row] * factors->square_least >= TINY));
}

/* A chunk of long rows; a row's factors are replaced when it is done. */
static void advance_strips(const Job *job, Chunk *chunk, Factors *factors, float *sums,
                           int64_t first, int64_t count)
{
    for (int64_t done = 0; done < count;) {
        int64_t row = (first + done) / job->cols, col = (first + done) % job->cols;
        int64_t rest = job->cols - col, run = rest < count - done ? rest : count - done;
        if (col == 0)
            factors->momentum_total = factors->square_total = 0;
        factors->momentum_row = job->momentum_row + row, factors->square_row = job->square_row + row;
        factors->momentum_col = job->momentum_col + col, factors->square_col = job->square_col + col;
        factors->momentum_sums = sums + col, factors->square_sums = sums + job->cols + col;
        if (vanishes(job, factors, row))
            advance(job, chunk, factors, first + done, done, run, 0, 1);
        else
            advance(job, chunk, factors, first + done, done, run, 0, 0);
        if (MOMENTUM == RANK1 && run == rest)
            job->momentum_row[row] = factors->momentum_total;
        if (SQUARE == RANK1 && run == rest)
            job->square_row[row] = factors->square_total;
        done += run;
    }
}

/* Each row's factor for all its elements, by doubling while it lasts: rows are shorter than vectors.
   The data stay at the end of `all`, so that writing does not overtake reading. */
static void spread(float *all, const float *rows, int64_t num_rows, int64_t cols)
{
    int64_t odd = cols, numel = num_rows * cols;
    while (odd % 2 == 0)
        odd /= 2;
    float *end = all + numel, *few = end - num_rows * odd;
    for (int64_t k = 0; k < odd; k++)
        for (int64_t i = 0; i < num_rows; i++)
            few[i * odd + k] = rows[i];
    for (int64_t size = num_rows * odd; size < numel; size *= 2) {
        const float *from = end - size;
        float *to = end - 2 * size;
#pragma omp simd
        for (int64_t i = 0; i < size; i++)
            to[2 * i] = to[2 * i + 1] = from[i];
    }
}

/* Sums of rows, by pairs while it lasts: rows are shorter than vectors. `all` is used up. */
static void add_up(float *rows, float *all, int64_t num_rows, int64_t cols)
{
    for (; cols % 2 == 0; cols /= 2)
#pragma omp simd
        for (int64_t i = 0; i < num_rows * cols / 2; i++)
            all[i] = all[2 * i] + all[2 * i + 1];
    memset(rows, 0, (size_t)num_rows * sizeof *rows);
    for (int64_t k = 0; k < cols; k++)
        for (int64_t i = 0; i < num_rows; i++)
            rows[i] += all[i * cols + k];
}

/* A chunk of several short rows, side by side. */
static void advance_rows(const Job *job, Chunk *chunk, Factors *factors, int64_t first,
                         int64_t count)
{
    int64_t cols = job->cols, row = first / cols, num_rows = count / cols;
    if (MOMENTUM == RANK1)
        spread(chunk->momentum_row, job->momentum_row + row, num_rows, cols);
    if (SQUARE == RANK1)
        spread(chunk->square_row, job->square_row + row, num_rows, cols);
    factors->momentum_row = chunk->momentum_row, factors->square_row = chunk->square_row;
    advance(job, chunk, factors, first, 0, count, 1, 1);
    if (MOMENTUM == RANK1)
        add_up(job->momentum_row + row, chunk->momentum_size, num_rows, cols);
    if (SQUARE == RANK1)
        add_up(job->square_row + row, chunk->square_size, num_rows, cols);
}

/* The job of one parameter of the batch. */
static Job member(const Job *job, int64_t index)
{
    int64_t numel = job->rows * job->cols, before = index * numel;
    Job one = *job;
    one.weights += index, one.grads += index;
    one.momentum = (char *)job->momentum + before * (MOMENTUM == HALF ? 2 : 4);
    one.square = (char *)job->square + before * (SQUARE == HALF ? 2 : 4);
    one.momentum_row += index * job->rows, one.momentum_col += index * job->cols;
    one.square_row += index * job->rows, one.square_col += index * job->cols;
    one.sign += index * ((numel + 7) / 8);
    one.partial += index * job->blocks * 2 * job->cols;
    one.squares += index * job->blocks, one.norms += index;
    for (int stream = 0; stream < 3; stream++)
        one.salts[stream] += (uint32_t)job->numbers[index] * 0x2545F491u;
    return one;
}

static void draw_all(const Job *job, Chunk *chunk, int64_t first, int64_t count)
{
    if (WEIGHTS == HALF && ROUNDING == STOCHASTIC)
        draw(chunk->weights, job->salts[0], first, count);
    if (MOMENTUM == HALF)
        draw(chunk->momentum, job->salts[1], first, count);
    if (SQUARE == HALF)
        draw(chunk->square, job->salts[2], first, count);
}

/* Everything but the new factors, of one block of one parameter. */
static void step_block(const Job *job, int64_t block)
{
    int64_t cols = job->cols, numel = job->rows * cols, first = block * job->block;
    int64_t end = first + job->block < numel ? first + job->block : numel;
    int64_t rows_at_once = CHUNK / cols / 8 * 8; /* whole bytes of signs; 0: rows are long */
    int64_t size = SUMS && rows_at_once ? rows_at_once * cols : CHUNK;
    float *sums = job->partial + block * 2 * cols;
    float col[2][CHUNK], several_sums[2][CHUNK]; /* of the columns of several rows */
    Chunk chunk;
    Factors factors = {0};
    if (SUMS)
        memset(sums, 0, 2 * (size_t)cols * sizeof *sums);
    if (SUMS && rows_at_once) {
        memset(several_sums, 0, sizeof several_sums);
        for (int64_t i = 0; i < rows_at_once; i++) {
            if (MOMENTUM == RANK1)
                memcpy(col[0] + i * cols, job->momentum_col, (size_t)cols * sizeof **col);
            if (SQUARE == RANK1)
                memcpy(col[1] + i * cols, job->square_col, (size_t)cols * sizeof **col);
        }
        factors.momentum_col = col[0], factors.square_col = col[1];
        factors.momentum_sums = several_sums[0], factors.square_sums = several_sums[1];
    }
    if (MOMENTUM == RANK1)
        factors.momentum_least = least_positive(job->momentum_col, cols);
    if (SQUARE == RANK1)
        factors.square_least = least_positive(job->square_col, cols);
    for (; first < end; first += size) {
        int64_t count = end - first < size ? end - first : size;
        draw_all(job, &chunk, first, count);
        if (MOMENTUM == RANK1)
            unpack_signs(chunk.negative, job->sign + first / 8, count);
        if (!SUMS)
            advance(job, &chunk, &factors, first, 0, count, 0, 0);
        else if (rows_at_once)
            advance_rows(job, &chunk, &factors, first, count);
        else
            advance_strips(job, &chunk, &factors, sums, first, count);
        if (MOMENTUM == RANK1)
            pack_signs(job->sign + first / 8, chunk.negative, count);
    }
    job->squares[block] = factors.grad_squares;
    for (int64_t i = 0; SUMS && i < rows_at_once; i++)
        for (int64_t k = 0; k < cols; k++) {
            sums[k] += several_sums[0][i * cols + k];
            sums[cols + k] += several_sums[1][i * cols + k];
        }
}

/* Rank1.write, from rows' sums in place and blocks' column sums. */
static void store_sums(const Job *job, float *row, float *col, const float *sums)
{
    double total = 0; /* of many rows */
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < job->rows; i++)
        total += row[i];
    float scale = (float)total > 0 ? (float)total : 1;
    for (int64_t i = 0; i < job->rows; i++) {
        float share = row[i] / scale;
        share = share < TINY ? TINY : share;
        row[i] = row[i] > 0 ? share : share * 0;
    }
    memcpy(col, sums, (size_t)job->cols * sizeof *col);
    for (int64_t block = 1; block < job->blocks; block++)
        for (int64_t i = 0; i < job->cols; i++)
            col[i] += sums[block * 2 * job->cols + i];
}

/* Advance blocks [first, last) of the batch, counted through all its members. */
void step(const Job *job, int64_t first, int64_t last)
{
    for (int64_t i = first; i < last; i++) {
        Job one = member(job, i / job->blocks);
        step_block(&one, i % job->blocks);
    }
}

/* Store the new factors of members [first, last) and their gradients' norms, after all blocks. */
void finish(const Job *job, int64_t first, int64_t last)
{
    for (int64_t i = first; i < last; i++) {
        Job one = member(job, i);
        if (MOMENTUM == RANK1)
            store_sums(&one, one.momentum_row, one.momentum_col, one.partial);
        if (SQUARE == RANK1)
            store_sums(&one, one.square_row, one.square_col, one.partial + job->cols);
        double squares = 0;
        for (int64_t block = 0; block < job->blocks; block++)
            squares += one.squares[block];
        *one.norms = (float)sqrt(squares);
    }
}
