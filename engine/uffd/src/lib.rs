//! userfaultfd and the system calls around it, with the kernel's answers as words.
