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
                to[place_of(width, i, token)] = (NUMBER)(from[token * width + i] / lengths[token]);
    }
}

// Adds what so many features give to `broad` registers of a tile, at most BROAD. Sums are taken one by
// one: so those of equal tokens are equal. With each feature TALL numbers more from `next` on are on
// their way, which are read later: all at once, they would hold up what is read now.
HELPER void NAMED(multiply)(const NUMBER *a, const NUMBER *const b[BROAD], int64_t width,
                            NUMBER to[][AVL_PANEL], const int broad, const NUMBER *next)
{
    REGISTER sum[TALL][BROAD] = {0};
    for (int64_t i = 0; i < width; i++) {
        REGISTER own[BROAD];
        __builtin_prefetch(next + i * TALL);
        _Pragma("GCC unroll 3") for (int x = 0; x < broad; x++)
            own[x] = *(const REGISTER *)(b[x] + i * AVL_GROUP);
        _Pragma("GCC unroll 8") for (int r = 0; r < TALL; r++)
            _Pragma("GCC unroll 3") for (int x = 0; x < broad; x++)
                sum[r][x] += a[i * AVL_GROUP + r] * own[x];
    }
    _Pragma("GCC unroll 8") for (int r = 0; r < TALL; r++)
        _Pragma("GCC unroll 3") for (int x = 0; x < broad; x++)
            *(REGISTER *)(to[r] + x * ACROSS) += sum[r][x];
}

HELPER void NAMED(write)(NUMBER *to, int64_t stride, int64_t rows, int64_t columns,
                         const NUMBER found[AVL_PANEL][AVL_PANEL])
{
    for (int64_t r = 0; r < rows; r++)
        memcpy(to + r * stride, found[r], (size_t)columns * sizeof *to);
}

// The greatest number of each of so many columns.
HELPER void NAMED(peaks)(const NUMBER found[AVL_PANEL][AVL_PANEL], int64_t rows, int64_t columns,
                         NUMBER *to)
{
    NUMBER best[AVL_PANEL];
    memcpy(best, found[0], sizeof best);
    for (int64_t r = 1; r < rows; r++)
        for (int64_t c = 0; c < AVL_PANEL; c++)
            best[c] = found[r][c] > best[c] ? found[r][c] : best[c];
    memcpy(to, best, (size_t)columns * sizeof *to);
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
        int64_t row = 0; // whose results' places are asked for next
        for (int64_t i = 0; i < of->width; i += DEEP) {
            const int64_t deep = least(DEEP, of->width - i);
            // The other panel's next features, or the next panel's first ones.
            const NUMBER *next = others + (i + deep < of->width ? (i + deep) * AVL_GROUP : size);
            for (int64_t r = 0; r < rows; r += TALL, row++) {
                const int64_t part = place_of(of->width, 0, r) - r % AVL_GROUP * (1 - DEEP);
                if (row < rows)
                    fetch_to_write((char *)(to + row * of->stride), sizeof *found + 1);
                if (row < columns && !of->beside)
                    fetch_to_write((char *)(back + row * of->stride), sizeof *found + 1);
                for (int64_t c = 0, count; c < columns; c += count * ACROSS) {
                    const NUMBER *b[BROAD];
                    count = columns - c > (BROAD - 1) * ACROSS ? BROAD : 1;
                    for (int x = 0; x < count; x++)
                        b[x] = others + place_of(of->width, i, c + x * ACROSS);
                    const NUMBER *a = own + place_of(of->width, i, r);
                    NUMBER(*sums)[AVL_PANEL] = (NUMBER(*)[AVL_PANEL])&found[r][c];
                    if (count == BROAD)
                        NAMED(multiply)(a, b, deep, sums, BROAD, next + part);
                    else
                        NAMED(multiply)(a, b, deep, sums, 1, next + part);
                }
            }
        }
        NAMED(finish)(found, of->temperature);
        NAMED(write)(to, of->stride, rows, columns, found);
        if (!of->beside && panel != other) {
            for (int64_t c = 0; c < columns; c++)
                for (int64_t r = 0; r < rows; r++)
                    turned[c][r] = found[r][c];
            NAMED(write)(back, of->stride, columns, rows, turned);
        }
        if (!of->greatest)
            continue;
        NUMBER *greatest = (NUMBER *)of->greatest;
        for (int64_t r = 0; panel == other && r < rows; r++)
            found[r][r] = -INFINITY;
        NAMED(peaks)(found, rows, columns, greatest + panel * of->tokens + other * AVL_PANEL);
        if (panel != other)
            NAMED(peaks)(turned, columns, rows, greatest + other * of->tokens + panel * AVL_PANEL);
    }
}

// Cosines of AVL_GROUP tokens with so many that are chosen, each of them summed in WAYS parts, so that
// few are as fast as many.
HELPER void NAMED(meet)(const avl_likeness *of, int64_t group, const NUMBER *units, int count,
                        double found[][AVL_GROUP])
{
    enum { HELD = AVL_GROUP / ACROSS };
    const int64_t begin = group * AVL_GROUP, panel = begin / AVL_PANEL * AVL_PANEL;
    const NUMBER *own = (const NUMBER *)of->panels + panel * of->width;
    own += place_of(of->width, 0, begin - panel);
    memset(found, 0, (size_t)count * sizeof *found);
    for (int64_t first = 0; first < of->width; first += DEEP) {
        const int64_t end = least(of->width, first + DEEP);
        REGISTER sums[MET][WAYS][HELD] = {0};
        int64_t i = first;
        for (; i + WAYS <= end; i += WAYS)
            _Pragma("GCC unroll 4") for (int way = 0; way < WAYS; way++)
                _Pragma("GCC unroll 4") for (int x = 0; x < HELD; x++) {
                    const REGISTER at =
                        *(const REGISTER *)(own + (i + way) * AVL_GROUP + x * ACROSS);
                    _Pragma("GCC unroll 4") for (int r = 0; r < count; r++)
                        sums[r][way][x] += units[r * of->width + i + way] * at;
                }
        for (; i < end; i++)
            _Pragma("GCC unroll 4") for (int x = 0; x < HELD; x++)
                _Pragma("GCC unroll 4") for (int r = 0; r < count; r++)
                    sums[r][0][x] += units[r * of->width + i] *
                                     *(const REGISTER *)(own + i * AVL_GROUP + x * ACROSS);
        _Pragma("GCC unroll 4") for (int r = 0; r < count; r++)
            _Pragma("GCC unroll 4") for (int x = 0; x < HELD; x++) {
                const REGISTER sum = (sums[r][0][x] + sums[r][1][x]) + (sums[r][2][x] + sums[r][3][x]);
                for (int lane = 0; lane < ACROSS; lane++)
                    found[r][x * ACROSS + lane] += sum[lane];
            }
    }
}

static void NAMED(meet_all)(const avl_likeness *of, int64_t group, const void *given, int64_t count,
                            double found[][AVL_GROUP])
{
    const NUMBER *units = given;
    for (; count >= MET; count -= MET, units += MET * of->width, found += MET)
        NAMED(meet)(of, group, units, MET, found);
    for (; count; count--, units += of->width, found++)
        NAMED(meet)(of, group, units, 1, found);
}

static void NAMED(take)(const avl_likeness *of, int64_t token, void *unit)
{
    const NUMBER *features = (const NUMBER *)of->features + token * of->width;
    const double length = NAMED(length)(features, of->width);
    for (int64_t i = 0; i < of->width; i++)
        ((NUMBER *)unit)[i] = (NUMBER)(features[i] / length);
}
