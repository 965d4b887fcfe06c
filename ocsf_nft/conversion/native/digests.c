/* SPDX-License-Identifier: Apache-2.0 */
#include "digests.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

static uint32_t left32(uint32_t value, int bits)
{
	return value << bits | value >> (32 - bits);
}

static uint64_t right64(uint64_t value, int bits)
{
	return value >> bits | value << (64 - bits);
}

static uint64_t left64(uint64_t value, int bits)
{
	return value << bits | value >> (64 - bits);
}

static uint32_t big32(const uint8_t *at)
{
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static uint64_t little64(const uint8_t *at)
{
	uint64_t value = 0;

	for (int byte = 7; byte >= 0; byte--)
		value = value << 8 | at[byte];
	return value;
}

static void sha1_blocks(uint32_t state[5], const uint8_t *block, size_t blocks)
{
	for (; blocks > 0; blocks--, block += 64) {
		uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
		uint32_t words[80];

		for (int at = 0; at < 16; at++)
			words[at] = big32(block + 4 * at);
		for (int at = 16; at < 80; at++)
			words[at] = left32(words[at - 3] ^ words[at - 8] ^ words[at - 14]
					   ^ words[at - 16], 1);
		for (int at = 0; at < 80; at++) {
			uint32_t mixed, constant;

			if (at < 20) {
				mixed = (b & c) | (~b & d);
				constant = 0x5a827999;
			} else if (at < 40) {
				mixed = b ^ c ^ d;
				constant = 0x6ed9eba1;
			} else if (at < 60) {
				mixed = (b & c) | (b & d) | (c & d);
				constant = 0x8f1bbcdc;
			} else {
				mixed = b ^ c ^ d;
				constant = 0xca62c1d6;
			}
			mixed += left32(a, 5) + e + constant + words[at];
			e = d;
			d = c;
			c = left32(b, 30);
			b = a;
			a = mixed;
		}
		state[0] += a;
		state[1] += b;
		state[2] += c;
		state[3] += d;
		state[4] += e;
	}
}

#if defined(__x86_64__)
/* Four rounds each, with the instructions of the processor (Intel SHA extensions). */
#define ROUNDS(e_in, e_out, message, kind) \
	do { \
		e_in = _mm_sha1nexte_epu32(e_in, message); \
		e_out = abcd; \
		abcd = _mm_sha1rnds4_epu32(abcd, e_in, kind); \
	} while (0)

__attribute__((target("sha,sse4.1"))) static void sha1_blocks_x86(uint32_t state[5],
								  const uint8_t *block,
								  size_t blocks)
{
	const __m128i order = _mm_set_epi64x(0x0001020304050607, 0x08090a0b0c0d0e0f);
	__m128i abcd = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0x1b);
	__m128i e0 = _mm_set_epi32((int)state[4], 0, 0, 0);

	for (; blocks > 0; blocks--, block += 64) {
		const __m128i abcd_before = abcd, e_before = e0;
		__m128i words[4], e1;

		for (int at = 0; at < 4; at++)
			words[at] = _mm_shuffle_epi8(
				_mm_loadu_si128((const __m128i *)(block + 16 * at)), order);
		e0 = _mm_add_epi32(e0, words[0]);
		e1 = abcd;
		abcd = _mm_sha1rnds4_epu32(abcd, e0, 0);
		for (int group = 1; group < 20; group++) {
			__m128i message = words[group & 3];

			if (group >= 4) {
				message = _mm_sha1msg1_epu32(message, words[(group + 1) & 3]);
				message = _mm_xor_si128(message, words[(group + 2) & 3]);
				message = _mm_sha1msg2_epu32(message, words[(group + 3) & 3]);
				words[group & 3] = message;
			}
			e0 = e1;
			if (group < 5)
				ROUNDS(e0, e1, message, 0);
			else if (group < 10)
				ROUNDS(e0, e1, message, 1);
			else if (group < 15)
				ROUNDS(e0, e1, message, 2);
			else
				ROUNDS(e0, e1, message, 3);
		}
		e0 = _mm_sha1nexte_epu32(e1, e_before);
		abcd = _mm_add_epi32(abcd, abcd_before);
	}
	_mm_storeu_si128((__m128i *)state, _mm_shuffle_epi32(abcd, 0x1b));
	state[4] = (uint32_t)_mm_extract_epi32(e0, 3);
}

static int has_sha_instructions(void)
{
	static int known = -1;
	unsigned int a, b, c, d;

	if (known < 0) {
		int has_sse41 = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_SSE4_1);

		known = has_sse41 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
	}
	return known;
}
#endif

void sha1(const uint8_t *text, size_t size, uint8_t digest[SHA1_BYTES])
{
	uint32_t state[5] = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0 };
	uint8_t padded[SHA1_LONGEST + 9];
	size_t whole = (size + 9 + 63) / 64 * 64;

	memcpy(padded, text, size);
	memset(padded + size, 0, whole - size);
	padded[size] = 0x80;
	for (int byte = 0; byte < 8; byte++)
		padded[whole - 1 - byte] = (uint8_t)((uint64_t)size * 8 >> 8 * byte);
#if defined(__x86_64__)
	if (has_sha_instructions())
		sha1_blocks_x86(state, padded, whole / 64);
	else
#endif
		sha1_blocks(state, padded, whole / 64);
	for (int at = 0; at < SHA1_BYTES; at++)
		digest[at] = (uint8_t)(state[at / 4] >> (24 - 8 * (at % 4)));
}

static const uint64_t BLAKE2B_START[8] = {
	0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
	0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};

static const uint8_t BLAKE2B_ORDER[12][16] = {
	{ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 },
	{ 14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3 },
	{ 11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4 },
	{ 7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8 },
	{ 9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13 },
	{ 2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9 },
	{ 12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11 },
	{ 13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10 },
	{ 6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5 },
	{ 10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0 },
	{ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 },
	{ 14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3 },
};

#define MIX(a, b, c, d, first, second) \
	do { \
		a += b + (first); \
		d = right64(d ^ a, 32); \
		c += d; \
		b = right64(b ^ c, 24); \
		a += b + (second); \
		d = right64(d ^ a, 16); \
		c += d; \
		b = right64(b ^ c, 63); \
	} while (0)

static void blake2b_block(uint64_t state[8], const uint8_t block[128], uint64_t done, int is_last)
{
	uint64_t words[16], v[16];

	for (int at = 0; at < 16; at++)
		words[at] = little64(block + 8 * at);
	memcpy(v, state, 64);
	memcpy(v + 8, BLAKE2B_START, 64);
	v[12] ^= done;
	if (is_last)
		v[14] = ~v[14];
	for (int round = 0; round < 12; round++) {
		const uint8_t *order = BLAKE2B_ORDER[round];

		MIX(v[0], v[4], v[8], v[12], words[order[0]], words[order[1]]);
		MIX(v[1], v[5], v[9], v[13], words[order[2]], words[order[3]]);
		MIX(v[2], v[6], v[10], v[14], words[order[4]], words[order[5]]);
		MIX(v[3], v[7], v[11], v[15], words[order[6]], words[order[7]]);
		MIX(v[0], v[5], v[10], v[15], words[order[8]], words[order[9]]);
		MIX(v[1], v[6], v[11], v[12], words[order[10]], words[order[11]]);
		MIX(v[2], v[7], v[8], v[13], words[order[12]], words[order[13]]);
		MIX(v[3], v[4], v[9], v[14], words[order[14]], words[order[15]]);
	}
	for (int at = 0; at < 8; at++)
		state[at] ^= v[at] ^ v[at + 8];
}

void blake2b(const uint8_t *text, size_t size, uint8_t *digest, size_t digest_size)
{
	uint64_t state[8];
	uint8_t last[128] = { 0 };
	size_t at = 0;

	memcpy(state, BLAKE2B_START, sizeof(state));
	state[0] ^= 0x01010000 ^ digest_size;
	for (; size - at > 128; at += 128)
		blake2b_block(state, text + at, at + 128, 0);
	memcpy(last, text + at, size - at);
	blake2b_block(state, last, size, 1);
	for (size_t byte = 0; byte < digest_size; byte++)
		digest[byte] = (uint8_t)(state[byte / 8] >> 8 * (byte % 8));
}

#define SIP_ROUND() \
	do { \
		a += b; \
		b = left64(b, 13) ^ a; \
		a = left64(a, 32); \
		c += d; \
		d = left64(d, 16) ^ c; \
		a += d; \
		d = left64(d, 21) ^ a; \
		c += b; \
		b = left64(b, 17) ^ c; \
		c = left64(c, 32); \
	} while (0)

uint64_t siphash(const uint8_t *text, size_t size, const uint64_t key[2])
{
	uint64_t a = key[0] ^ 0x736f6d6570736575, b = key[1] ^ 0x646f72616e646f6d;
	uint64_t c = key[0] ^ 0x6c7967656e657261, d = key[1] ^ 0x7465646279746573;
	uint64_t last = (uint64_t)size << 56;
	size_t at = 0;

	for (; size - at >= 8; at += 8) {
		uint64_t word = little64(text + at);

		d ^= word;
		SIP_ROUND();
		a ^= word;
	}
	for (int byte = 0; at < size; at++, byte++)
		last |= (uint64_t)text[at] << 8 * byte;
	d ^= last;
	SIP_ROUND();
	a ^= last;
	c ^= 0xff;
	SIP_ROUND();
	SIP_ROUND();
	SIP_ROUND();
	return a ^ b ^ c ^ d;
}
