//! What the compiler and `core` take for granted and a C library would provide; and that nothing here panics.

use core::arch::global_asm;

// Hidden: the program's own must stay what it is.
global_asm!(
    ".hidden memcpy",
    ".globl memcpy",
    ".type memcpy, @function",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    ".size memcpy, . - memcpy",
    ".hidden memset",
    ".globl memset",
    ".type memset, @function",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    ".size memset, . - memset",
    ".hidden bcmp",
    ".globl bcmp",
    ".type bcmp, @function",
    "bcmp:",
    "xor eax, eax",
    "mov rcx, rdx",
    // Of nothing at all the comparison below leaves the flags as they are: equal.
    "cmp eax, eax",
    "repe cmpsb",
    "setne al",
    "ret",
    ".size bcmp, . - bcmp",
    ".hidden strlen",
    ".globl strlen",
    ".type strlen, @function",
    "strlen:",
    "mov rax, rdi",
    "2:",
    "cmp byte ptr [rax], 0",
    "je 3f",
    "inc rax",
    "jmp 2b",
    "3:",
    "sub rax, rdi",
    "ret",
    ".size strlen, . - strlen",
);

/// A panic would have nobody to tell. There is none: the symbol called here exists nowhere, so that an object in which a
/// panic can be reached doesn't link.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe extern "C" {
        fn userswap_preload_can_panic() -> !;
    }
    // SAFETY: never called.
    unsafe { userswap_preload_can_panic() }
}
