/* Programs that know nothing of userswap, one a mode. They speak with the test over standard input and output: a program says
 * "fill ADDRESS LENGTH" and waits for a line; meanwhile the test has that memory moved out. Every byte is checked afterwards. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 256UL
#define LENGTH (PAGES * PAGE)

extern char **environ;

static void fail(const char *what) {
    printf("FAILED %s: %s\n", what, strerror(errno));
    fflush(stdout);
    _exit(1);
}

static void check(int good, const char *what) {
    if (!good) fail(what);
}

/* Says a line and waits for one. */
static void say(const char *what, void *at, unsigned long length) {
    char line[64];
    int count = snprintf(line, sizeof line, "%s %lx %lx %d\n", what, (unsigned long)at, length, getpid());
    check(write(1, line, count) == count, "say");
    char c;
    do check(read(0, &c, 1) == 1, "hear"); while (c != '\n');
}

static uint64_t word(unsigned long at, unsigned seed) { return (at + 1) * 0x9e3779b97f4a7c15UL ^ seed; }

static void write_pattern(uint64_t *at, unsigned long length, unsigned seed) {
    for (unsigned long i = 0; i < length / 8; i++) at[i] = word(i, seed);
}

static void check_part(uint64_t *at, unsigned long from, unsigned long to, unsigned seed, const char *who) {
    for (unsigned long i = from / 8; i < to / 8; i++)
        if (at[i] != word(i, seed)) {
            printf("FAILED %s: byte %#lx is %#lx\n", who, i * 8, at[i]);
            fflush(stdout);
            _exit(1);
        }
}

static void check_pattern(uint64_t *at, unsigned long length, unsigned seed, const char *who) {
    check_part(at, 0, length, seed, who);
}

static void *map(unsigned long length) {
    void *at = mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(at != MAP_FAILED, "mmap");
    return at;
}

static uint64_t *filled(unsigned seed) {
    uint64_t *at = map(LENGTH);
    write_pattern(at, LENGTH, seed);
    return at;
}

static int count(const char *directory) {
    char command[128];
    snprintf(command, sizeof command, "ls %s | wc -l", directory);
    FILE *pipe = popen(command, "r");
    int n = -1;
    check(pipe && fscanf(pipe, "%d", &n) == 1, command);
    pclose(pipe);
    return n;
}

static int threads(void) {
    char line[256];
    int n = -1;
    FILE *status = fopen("/proc/self/status", "r");
    check(status != 0, "status");
    while (fgets(line, sizeof line, status)) sscanf(line, "Threads: %d", &n);
    fclose(status);
    return n;
}

static void reap(pid_t child, const char *what) {
    int status = 0;
    check(waitpid(child, &status, 0) == child, what);
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        printf("FAILED %s: status %#x\n", what, status);
        fflush(stdout);
        _exit(1);
    }
}

/* ---- modes ---- */

static int data(void) {
    uint64_t *at = filled(1);
    say("fill", at, LENGTH);
    check_pattern(at, LENGTH, 1, "data");
    return 0;
}

static int hello(void) { return 0; }

static int forks(void) {
    uint64_t *at = filled(2);
    say("fill", at, LENGTH);
    pid_t child = fork();
    if (child == 0) {
        check_pattern(at, LENGTH / 2, 2, "child");
        write_pattern(at, LENGTH / 2, 3);
        say("fill", at, LENGTH);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            check_pattern(at, LENGTH / 2, 3, "grandchild");
            say("fill", at, LENGTH / 2);
            check_pattern(at, LENGTH / 2, 3, "grandchild, again");
            _exit(0);
        }
        reap(grandchild, "grandchild");
        check_pattern(at, LENGTH / 2, 3, "child, again");
        check_part(at, LENGTH / 2, LENGTH, 2, "child, the rest");
        _exit(0);
    }
    reap(child, "child");
    check_pattern(at, LENGTH, 2, "parent");
    /* What the child shared is the parent's own again, and can leave. */
    say("fill", at, LENGTH);
    check_pattern(at, LENGTH, 2, "parent, again");
    return 0;
}

/* Daemonised: the C library forks by itself. */
static int daemonized(void) {
    check(daemon(1, 1) == 0, "daemon");
    return data();
}

static int bare_fork(void) {
    uint64_t *at = filled(4);
    say("fill", at, LENGTH);
    pid_t child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    check(child >= 0, "clone");
    if (child == 0) {
        check_pattern(at, LENGTH, 4, "child of a bare clone");
        _exit(0);
    }
    reap(child, "child of a bare clone");
    check_pattern(at, LENGTH, 4, "parent");
    return 0;
}

static const char *self, *argument;
static char **arguments;

static int vforks(void) {
    uint64_t *at = filled(5);
    say("fill", at, LENGTH);
    pid_t child = vfork();
    if (child == 0) {
        execl(self, self, "data", (char *)0);
        _exit(99);
    }
    reap(child, "executed after vfork");
    check_pattern(at, LENGTH, 5, "parent");
    return 0;
}

static int spawns(void) {
    uint64_t *at = filled(6);
    say("fill", at, LENGTH);
    char *none[] = {0}, *argv[] = {(char *)self, "data", 0};
    pid_t child;
    check(posix_spawn(&child, self, 0, 0, argv, none) == 0, "posix_spawn");
    reap(child, "spawned");
    check_pattern(at, LENGTH, 6, "parent");
    return 0;
}

static int clears(void) {
    clearenv();
    execlp(self, self, "data", (char *)0);
    return 1;
}

static int clears_for_another(void) {
    char *environment[] = {"LD_PRELOAD=/nowhere/libother.so", "A=1", 0};
    execle(self, self, "environment", (char *)0, environment);
    return 1;
}

static int shows_environment(void) {
    for (char **entry = environ; *entry; entry++) printf("%s\n", *entry);
    return 0;
}

static void *data_thread(void *unused) {
    (void)unused;
    usleep(50000);
    data();
    return 0;
}

static int main_exits(void) {
    pthread_t thread;
    check(pthread_create(&thread, 0, data_thread, 0) == 0, "pthread_create");
    pthread_exit(0);
}

static int bare_exit(void) {
    data();
    return syscall(SYS_exit, 7);
}

static int closes_all(void) {
    int before = count("/proc/self/fd");
    uint64_t *at = filled(7);
    say("fill", at, LENGTH);
    check(count("/proc/self/fd") == before, "descriptors");
    check_pattern(at, LENGTH, 7, "before");
    check(syscall(SYS_close_range, 3U, ~0U, 0U) == 0, "close_range");
    for (int fd = 3; fd < 1024; fd++) close(fd);
    say("fill", at, LENGTH);
    check_pattern(at, LENGTH, 7, "after");
    return 0;
}

static int chroots(void) {
    uint64_t *at = filled(8);
    check(chroot(argument) == 0 && chdir("/") == 0, "chroot");
    say("fill", at, LENGTH);
    check_pattern(at, LENGTH, 8, "in another root");
    pid_t child = fork();
    if (child == 0) {
        say("fill", at, LENGTH);
        check_pattern(at, LENGTH, 8, "child in another root");
        /* The object can't be loaded there: it is not asked for. */
        execl("/nothing", "nothing", (char *)0);
        _exit(errno == ENOENT ? 0 : 1);
    }
    reap(child, "child in another root");
    return 0;
}

/* Kills for what an agent does, and for whatever makes threads and sockets. */
static void restrict_calls(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 5, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ppoll, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close_range, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no new privileges");
    check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0, "seccomp");
}

static int pipe_of[4];
static char heard;
static pid_t ending;

/* Says that it runs, waits, and ends, and touches no memory of its own from then on. */
static void *end_untouched(void *unused) {
    long made;
    ending = gettid();
    __asm__ volatile(
        "syscall\n\t"
        "mov $0, %%eax\n\t"
        "mov %2, %%edi\n\t"
        "lea %3, %%rsi\n\t"
        "syscall\n\t"
        "mov $60, %%eax\n\t"
        "xor %%edi, %%edi\n\t"
        "syscall"
        : "=a"(made)
        : "a"(SYS_write), "r"(pipe_of[2]), "m"(heard), "D"(pipe_of[1]), "S"(&heard), "d"(1)
        : "rcx", "r11", "memory");
    return unused;
}

/* The kernel clears a word of the thread's structures when it ends, and waits for no page then. */
static int ends_untouched(void) {
    char *stack = map(LENGTH);
    memset(stack, 5, LENGTH);
    check(pipe(pipe_of) == 0 && pipe(pipe_of + 2) == 0, "pipes");
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    check(pthread_attr_setstack(&attributes, stack + LENGTH / 2, LENGTH / 4) == 0, "a stack");
    pthread_t thread;
    check(pthread_create(&thread, &attributes, end_untouched, 0) == 0, "a thread");
    char c;
    check(read(pipe_of[0], &c, 1) == 1, "it runs");
    say("fill", stack, LENGTH);
    check(write(pipe_of[3], &c, 1) == 1, "it may end");
    /* Whoever joins earlier touches the memory earlier, too, and has it back in place. */
    while (syscall(SYS_tgkill, getpid(), ending, 0) == 0) usleep(1000);
    check(pthread_join(thread, 0) == 0, "join");
    for (unsigned long i = 0; i < LENGTH / 2; i++) check(stack[i] == 5, "what lies below");
    for (unsigned long i = LENGTH / 4 * 3; i < LENGTH; i++) check(stack[i] == 5, "what lies above");
    return 0;
}

static int restricts(void) {
    uint64_t *at = filled(9);
    say("fill", at, LENGTH);
    /* Asked whether there could be one, it is still looked after. */
    check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, 0) == -1 && errno == EFAULT, "probe");
    check(threads() == 2, "an agent");
    restrict_calls();
    check_pattern(at, LENGTH, 9, "restricted");
    check(threads() == 1, "no agent");
    pid_t child = vfork();
    if (child == 0) {
        execl(self, self, "environment", (char *)0);
        _exit(99);
    }
    reap(child, "executed under the filter");
    return 0;
}

static int unshares(void) {
    uint64_t *at = filled(10);
    say("fill", at, LENGTH);
    if (unshare(CLONE_NEWUSER) && (errno == EPERM || errno == ENOSPC)) {
        printf("no user namespaces here\n");
        return 0;
    }
    check(threads() == 1, "no agent");
    check_pattern(at, LENGTH, 10, "unshared");
    return 0;
}

static int enters(void) {
    uint64_t *at = filled(11);
    int fd = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    check(fd >= 0, "open");
    say("fill", at, LENGTH);
    check(setns(fd, CLONE_NEWNS) == 0, "setns");
    check_pattern(at, LENGTH, 11, "entered");
    return 0;
}

static int advises(void) {
    unsigned char *at = (unsigned char *)filled(12);
    say("fill", at, LENGTH);
    check(madvise(at, LENGTH / 4, MADV_DONTFORK) == 0, "dontfork");
    check(syscall(SYS_madvise, at + LENGTH / 4, LENGTH / 4, 16 /* DONTDUMP */) == 0, "dontdump");
    say("excluded", at, LENGTH / 2);
    check_pattern((uint64_t *)at, LENGTH, 12, "advised");
    if (madvise(at + LENGTH / 2, PAGE, 102 /* GUARD_INSTALL */) == 0) {
        check(madvise(at + LENGTH / 2, PAGE, 103 /* GUARD_REMOVE */) == 0, "guard remove");
        for (unsigned i = 0; i < PAGE; i++) check(at[LENGTH / 2 + i] == 0, "a guarded page reads as zeros");
    }
    return 0;
}

static int remaps(void) {
    uint64_t *at = filled(13);
    /* A part only: that is what mremap refuses. */
    say("fill", (char *)at + LENGTH / 4, LENGTH / 2);
    uint64_t *grown = mremap(at, LENGTH, 2 * LENGTH, MREMAP_MAYMOVE);
    check(grown != MAP_FAILED, "mremap");
    check_pattern(grown, LENGTH, 13, "grown");
    write_pattern(grown, 2 * LENGTH, 14);
    say("fill", grown, 2 * LENGTH);
    check_pattern(grown, 2 * LENGTH, 14, "grown, again");
    /* To a fixed address the kernel would move what comes before the part, and then refuse. Longer, shorter, and as long. */
    size_t lengths[] = {2 * LENGTH, 2 * LENGTH, 4 * LENGTH, LENGTH};
    for (size_t i = 0; i + 1 < 4; i++) {
        size_t was = lengths[i], len = lengths[i + 1], kept = was < len ? was : len;
        write_pattern(grown, was, 15 + i);
        say("fill", (char *)grown + LENGTH / 4, LENGTH / 2);
        void *place = mmap(0, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(place != MAP_FAILED && mremap(grown, was, len, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place, "mremap to a place");
        grown = place;
        check_pattern(grown, kept, 15 + i, "at its place");
        for (size_t at = kept; at < len; at += PAGE) check(((char *)grown)[at] == 0, "what it grew by is empty");
    }
    say("fill", (char *)grown + LENGTH / 4, LENGTH / 2);
    check(mremap(grown, LENGTH, LENGTH, MREMAP_MAYMOVE | MREMAP_FIXED, (char *)grown + PAGE) == MAP_FAILED, "onto itself");
    char *nothing = mmap(0, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(nothing, PAGE);
    check(mremap(nothing, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, grown) == MAP_FAILED, "of nothing");
    check_pattern(grown, LENGTH, 17, "refused");
    return 0;
}

static volatile int stopped;

static void *evicted_again_and_again(void *at) {
    while (!stopped) say("fill", at, LENGTH);
    return 0;
}

static void *short_lived(void *value) {
    volatile char stack[2000];
    memset((char *)stack, (int)(intptr_t)value, sizeof stack);
    return value;
}

static int many_threads(void) {
    uint64_t *at = filled(15);
    pthread_t other, thread;
    say("fill", at, LENGTH);
    check(pthread_create(&other, 0, evicted_again_and_again, at) == 0, "pthread_create");
    for (intptr_t i = 0; i < 1000; i++) {
        void *result;
        check(pthread_create(&thread, 0, short_lived, (void *)i) == 0, "pthread_create");
        check(pthread_join(thread, &result) == 0 && result == (void *)i, "pthread_join");
        if (i % 50 == 0) check_pattern(at, LENGTH, 15, "beside threads");
    }
    stopped = 1;
    pthread_join(other, 0);
    check_pattern(at, LENGTH, 15, "after threads");
    return 0;
}

static volatile sig_atomic_t strays, counted;

static void on_signal(int number) {
    if (number == SIGURG) strays++;
    else counted++;
}

static int signals(void) {
    struct sigaction action = {.sa_handler = on_signal};
    check(sigaction(SIGURG, &action, 0) == 0 && sigaction(SIGUSR1, &action, 0) == 0, "sigaction");
    unsigned char *at = (unsigned char *)filled(16);
    say("fill", at, LENGTH);
    for (int i = 0; i < 100; i++) {
        check(kill(getpid(), SIGUSR1) == 0, "kill");
        check(counted == i + 1, "a signal for the process comes to the program's thread");
        check(madvise(at + i * PAGE, PAGE, MADV_DONTFORK) == 0, "madvise");
    }
    check(strays == 0, "no signal that wasn't sent");
    check_pattern((uint64_t *)at, LENGTH, 16, "signals");
    return 0;
}

/* Executes a mode with the environment given, under a filter that permits everything. */
static int filtered(void) {
    struct sock_filter filter[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, filter};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no new privileges");
    check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "seccomp");
    execle(self, self, argument, (char *)0, arguments + 3);
    return 1;
}

static int waits(void) {
    pause();
    return 0;
}

static const struct {
    const char *name;
    int (*run)(void);
} modes[] = {
    {"data", data}, {"hello", hello}, {"forks", forks}, {"daemonized", daemonized}, {"bare_fork", bare_fork},
    {"vforks", vforks}, {"spawns", spawns}, {"clears", clears}, {"clears_for_another", clears_for_another},
    {"environment", shows_environment}, {"main_exits", main_exits}, {"bare_exit", bare_exit},
    {"closes_all", closes_all}, {"chroots", chroots}, {"restricts", restricts}, {"unshares", unshares},
    {"enters", enters}, {"advises", advises}, {"ends_untouched", ends_untouched}, {"remaps", remaps}, {"many_threads", many_threads},
    {"signals", signals}, {"filtered", filtered}, {"waits", waits},
};

int main(int argc, char **argv) {
    setvbuf(stdout, 0, _IONBF, 0);
    self = argv[0];
    arguments = argv;
    argument = argc > 2 ? argv[2] : "";
    for (unsigned i = 0; argc > 1 && i < sizeof modes / sizeof *modes; i++)
        if (strcmp(modes[i].name, argv[1]) == 0) return modes[i].run();
    return 2;
}
