/* SPDX-License-Identifier: Apache-2.0 */
/* Hashes of events and flows: SHA-1 (FIPS 180-4), BLAKE2b (RFC 7693) and SipHash-1-3. */
#ifndef OCSF_NFT_DIGESTS_H
#define OCSF_NFT_DIGESTS_H

#include <stddef.h>
#include <stdint.h>

#define SHA1_BYTES 20

/* Hash of a text of at most SHA1_LONGEST bytes: no caller needs more, and a constant limit keeps the
 * padded text on the stack. */
#define SHA1_LONGEST 1015

void sha1(const uint8_t *text, size_t size, uint8_t digest[SHA1_BYTES]);

/* BLAKE2b without a key, of ``digest_size`` bytes (1 to 64). */
void blake2b(const uint8_t *text, size_t size, uint8_t *digest, size_t digest_size);

/* Keyed hash for tables: a sender who does not know the key can't choose texts that collide. */
uint64_t siphash(const uint8_t *text, size_t size, const uint64_t key[2]);

#endif
