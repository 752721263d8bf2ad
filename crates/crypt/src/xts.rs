//! AES-256-XTS by AWS-LC, whose cryptographic core is validated to FIPS 140-3. The unsafe island of this crate's library calls.
#![expect(unsafe_code, reason = "calls AWS-LC, which has no safe interface to XTS")]
// UNSAFETY: each context is made, used and freed by one owner; lengths are those of the slices that are passed.

use crate::key::Key;
use aws_lc_sys::{
    EVP_CIPHER_CTX, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_Cipher, EVP_CipherInit_ex, EVP_aes_256_xts,
    OPENSSL_cleanse,
};
use core::ptr::{self, NonNull};

/// A data unit.
pub const SECTOR_BYTES: usize = 512;

/// One direction of one key.
struct Context(NonNull<EVP_CIPHER_CTX>);

// SAFETY: a context is plain memory of the library, without a thread of its own.
unsafe impl Send for Context {}

impl Context {
    fn new(key: &Key, encrypts: bool) -> Option<Context> {
        // SAFETY: no argument.
        let context = Context(NonNull::new(unsafe { EVP_CIPHER_CTX_new() })?);
        // SAFETY: a new context, a cipher that is static, and a key of the 64 bytes that this cipher reads; no IV yet.
        let result = unsafe {
            EVP_CipherInit_ex(
                context.0.as_ptr(),
                EVP_aes_256_xts(),
                ptr::null_mut(),
                key.bytes().as_ptr(),
                ptr::null(),
                encrypts.into(),
            )
        };
        (result == 1).then_some(context)
    }

    fn sector(&mut self, number: u64, sector: &mut [u8]) {
        let mut tweak = [0; 16];
        tweak[..8].copy_from_slice(&number.to_le_bytes());
        // SAFETY: the context has its cipher and key; the IV has the cipher's 16 bytes; -1 leaves the direction.
        let ready = unsafe {
            EVP_CipherInit_ex(self.0.as_ptr(), ptr::null(), ptr::null_mut(), ptr::null(), tweak.as_ptr(), -1)
        };
        // SAFETY: in place, over exactly the slice's bytes: XTS neither buffers nor pads.
        let done = unsafe { EVP_Cipher(self.0.as_ptr(), sector.as_mut_ptr(), sector.as_ptr(), sector.len()) };
        // It can fail for a wrong length or a missing key only: were that so, data would be written in the clear.
        assert!(ready == 1 && done >= 0, "AES-XTS failed");
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once. The library overwrites the key schedule.
        unsafe { EVP_CIPHER_CTX_free(self.0.as_ptr()) };
    }
}

/// A cipher with its key, in both directions.
pub(crate) struct Xts {
    encrypt: Context,
    decrypt: Context,
}

impl Xts {
    /// `None`: no memory.
    pub(crate) fn new(key: &Key) -> Option<Xts> {
        Some(Xts { encrypt: Context::new(key, true)?, decrypt: Context::new(key, false)? })
    }

    /// Sectors in a row, the first of them number `first`, in place.
    pub(crate) fn encrypt(&mut self, first: u64, bytes: &mut [u8]) {
        for (number, sector) in (first..).zip(bytes.chunks_exact_mut(SECTOR_BYTES)) {
            self.encrypt.sector(number, sector);
        }
    }

    /// As [`Self::encrypt`]. A sector of zeros stays one: nothing was ever written there.
    pub(crate) fn decrypt(&mut self, first: u64, bytes: &mut [u8]) {
        for (number, sector) in (first..).zip(bytes.chunks_exact_mut(SECTOR_BYTES)) {
            if sector.iter().any(|byte| *byte != 0) {
                self.decrypt.sector(number, sector);
            }
        }
    }
}

/// Overwrites a secret; the compiler cannot leave it out.
pub(crate) fn cleanse(bytes: &mut [u8]) {
    // SAFETY: the slice's own bytes.
    unsafe { OPENSSL_cleanse(bytes.as_mut_ptr().cast(), bytes.len()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// IEEE 1619-2007, annex B, vector 10: AES-256, data unit 0xff, 512 bytes 00..ff 00..ff.
    #[test]
    fn the_standards_vector_comes_out() {
        let key = hex(concat!(
            "2718281828459045235360287471352662497757247093699959574966967627",
            "3141592653589793238462643383279502884197169399375105820974944592"
        ));
        let mut xts = Xts::new(&Key::new(key.try_into().unwrap()).unwrap()).unwrap();
        let plain: Vec<u8> = (0..=255).cycle().take(512).collect();
        let mut bytes = plain.clone();
        xts.encrypt(0xff, &mut bytes);
        assert_eq!(bytes[..32], hex("1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"));
        assert_eq!(bytes[480..], hex("773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151"));
        xts.decrypt(0xff, &mut bytes);
        assert_eq!(bytes, plain);
    }

    #[test]
    fn the_same_bytes_differ_by_place_and_by_key_and_zeros_stay_zeros() {
        let key = |byte: u8| {
            let mut bytes = [byte; 64];
            bytes[0] ^= 1;
            Xts::new(&Key::new(bytes).unwrap()).unwrap()
        };
        let (mut one, mut other) = (key(1), key(2));
        let mut bytes = vec![0x5A; 2 * SECTOR_BYTES];
        one.encrypt(7, &mut bytes);
        assert_ne!(bytes[..SECTOR_BYTES], bytes[SECTOR_BYTES..]);
        let mut again = vec![0x5A; SECTOR_BYTES];
        other.encrypt(7, &mut again);
        assert_ne!(bytes[..SECTOR_BYTES], again);
        one.decrypt(7, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0x5A));
        let mut nothing = vec![0; SECTOR_BYTES];
        one.decrypt(7, &mut nothing);
        assert!(nothing.iter().all(|byte| *byte == 0));
    }
}
