/* Bytes as whole numbers of 32 bits, side by side: as many as the processor takes, as what is wider GCC takes apart. */

#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

typedef int32_t Sums __attribute__((vector_size(4 * LANES)));

/* Conversions; those of the vector extension GCC 12 takes apart. */
static inline Sums at(const uint8_t *x) {
#if defined(__AVX512F__)
    return (Sums)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)x));
#elif defined(__AVX2__)
    return (Sums)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)x));
#else
    return (Sums){x[0], x[1], x[2], x[3]};
#endif
}

static inline void put(uint8_t *y, Sums sums) { /* the lowest byte of each */
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i *)y, _mm512_cvtepi32_epi8((__m512i)sums));
#elif defined(__AVX2__)
    __m256i bytes = _mm256_shuffle_epi8((__m256i)sums, _mm256_set1_epi32(0x0C080400));
    int32_t halves[2] = {_mm256_extract_epi32(bytes, 0), _mm256_extract_epi32(bytes, 4)};
    memcpy(y, halves, LANES);
#else
    for (int i = 0; i < LANES; i++) y[i] = (uint8_t)sums[i];
#endif
}
