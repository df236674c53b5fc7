// Products of a matrix with itself, of which half are computed, or with another. Panels lie in the
// order in which they are read, on both sides of a product; a tile of one and of another is summed
// in registers, and what two panels give is written twice, once turned.
//
// likeness.c includes this for each kind of NUMBER: REGISTER holds ACROSS of them, and NAMED(x) is
// what is called x here.

// 1 for a token of zeros, which stays as it is.
HELPER double NAMED(length)(const NUMBER *features, int64_t width)
{
    double sums[PIECE] = {0};
    int64_t i = 0;
    for (; i + PIECE <= width; i += PIECE)
        for (int64_t x = 0; x < PIECE; x++)
            sums[x] += (double)features[i + x] * features[i + x];
    for (; i < width; i++)
        sums[0] += (double)features[i] * features[i];
    for (int64_t x = 1; x < PIECE; x++)
        sums[0] += sums[x];
    return sums[0] > 0 ? sqrt(sums[0]) : 1;
}

static void NAMED(unit)(const avl_likeness *of, int64_t panel)
{
    const int64_t count = tokens_of(of->tokens, panel), width = of->width;
    const NUMBER *from = (const NUMBER *)of->features + panel * AVL_PANEL * width;
    NUMBER *to = (NUMBER *)of->panels + panel * AVL_PANEL * width;
    double lengths[AVL_PANEL];
    for (int64_t token = 0; token < count; token++)
        lengths[token] = NAMED(length)(from + token * width, width);
    if (count < AVL_PANEL)
        memset(to, 0, (size_t)(width * AVL_PANEL) * sizeof *to);
    for (int64_t begin = 0; begin < width; begin += PIECE) {
        const int64_t end = least(width, begin + PIECE);
        for (int64_t token = 0; token < count; token++)
            for (int64_t i = begin; i < end; i++)
                to[i * AVL_PANEL + token] = (NUMBER)(from[token * width + i] / lengths[token]);
    }
}

// Adds what so many features give. Sums are taken one by one: so those of equal tokens are equal.
HELPER void NAMED(multiply)(const NUMBER *a, const NUMBER *b, int64_t width, NUMBER to[][AVL_PANEL])
{
    REGISTER sum[TALL][BROAD] = {0};
    for (int64_t i = 0; i < width; i++) {
        REGISTER own[BROAD];
        _Pragma("GCC unroll 3") for (int x = 0; x < BROAD; x++)
            own[x] = *(const REGISTER *)(b + i * AVL_PANEL + x * ACROSS);
        _Pragma("GCC unroll 8") for (int r = 0; r < TALL; r++)
            _Pragma("GCC unroll 3") for (int x = 0; x < BROAD; x++)
                sum[r][x] += a[i * AVL_PANEL + r] * own[x];
    }
    _Pragma("GCC unroll 8") for (int r = 0; r < TALL; r++)
        _Pragma("GCC unroll 3") for (int x = 0; x < BROAD; x++)
            *(REGISTER *)(to[r] + x * ACROSS) += sum[r][x];
}

HELPER void NAMED(write)(NUMBER *to, int64_t stride, int64_t rows, int64_t columns,
                         const NUMBER found[AVL_PANEL][AVL_PANEL])
{
    for (int64_t r = 0; r < rows; r++)
        memcpy(to + r * stride, found[r], (size_t)columns * sizeof *to);
}

static void NAMED(compare)(const avl_likeness *of, int64_t panel)
{
    NUMBER found[AVL_PANEL][AVL_PANEL] __attribute__((aligned(64)));
    NUMBER turned[AVL_PANEL][AVL_PANEL] __attribute__((aligned(64)));
    const int64_t size = of->width * AVL_PANEL, rows = tokens_of(of->tokens, panel);
    const int64_t count = of->beside ? (of->others + AVL_PANEL - 1) / AVL_PANEL : panel + 1;
    const NUMBER *own = (const NUMBER *)of->panels + panel * size;
    for (int64_t other = 0; other < count; other++) {
        const NUMBER *others = (const NUMBER *)(of->beside ? of->beside : of->panels) + other * size;
        const int64_t columns = tokens_of(of->beside ? of->others : of->tokens, other);
        NUMBER *to = (NUMBER *)of->out + panel * AVL_PANEL * of->stride + other * AVL_PANEL;
        NUMBER *back = (NUMBER *)of->out + other * AVL_PANEL * of->stride + panel * AVL_PANEL;
        memset(found, 0, sizeof found);
        for (int64_t i = 0; i < of->width; i += DEEP)
            for (int64_t r = 0; r < rows; r += TALL)
                for (int64_t c = 0; c < columns; c += BROAD * ACROSS)
                    NAMED(multiply)(own + i * AVL_PANEL + r, others + i * AVL_PANEL + c,
                                    least(DEEP, of->width - i), (NUMBER(*)[AVL_PANEL])&found[r][c]);
        NAMED(finish)(found, of->temperature);
        NAMED(write)(to, of->stride, rows, columns, found);
        if (!of->beside && panel != other) {
            for (int64_t c = 0; c < columns; c++)
                for (int64_t r = 0; r < rows; r++)
                    turned[c][r] = found[r][c];
            NAMED(write)(back, of->stride, columns, rows, turned);
        }
    }
}
