/* Runs in the guest, in a shared directory: what programs do to files that a shell cannot. Arguments: whether shared
   mappings may be written (1 or 0). */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("line %d: %s: %s\n", __LINE__, #what, strerror(errno)); exit(1); } } while (0)

static int lock(int fd, int command, int type, long start, long length) {
    struct flock wanted = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    int result = fcntl(fd, command, &wanted);
    return command == F_GETLK && !result ? wanted.l_type : result;
}

static int in_child(int (*check)(int), int fd) {
    int status, child = fork();
    if (!child) _exit(check(fd));
    CHECK(waitpid(child, &status, 0) == child);
    return WEXITSTATUS(status);
}

static int child_is_locked_out(int ignored) {
    int fd = open("db", O_RDWR);
    return lock(fd, F_SETLK, F_WRLCK, 120, 1) == -1 && (errno == EAGAIN || errno == EACCES)
        && lock(fd, F_GETLK, F_WRLCK, 120, 1) == F_WRLCK && lock(fd, F_SETLK, F_WRLCK, 200, 1) == 0;
}

static int child_waits(int pipe_end) {
    int fd = open("db", O_RDWR);
    CHECK(write(pipe_end, "x", 1) == 1);
    CHECK(lock(fd, F_SETLKW, F_WRLCK, 100, 50) == 0);
    char text[4] = "";
    CHECK(pread(fd, text, 3, 0) == 3);
    return !strcmp(text, "new");
}

static void locks(void) {
    int fd = open("db", O_RDWR | O_CREAT, 0644), ends[2], status;
    CHECK(write(fd, "old", 3) == 3);
    CHECK(lock(fd, F_SETLK, F_WRLCK, 100, 50) == 0);
    CHECK(in_child(child_is_locked_out, 0) == 1);
    CHECK(pipe(ends) == 0);
    int child = fork();
    if (!child) _exit(child_waits(ends[1]));
    char go;
    CHECK(read(ends[0], &go, 1) == 1);
    CHECK(pwrite(fd, "new", 3, 0) == 3);
    CHECK(lock(fd, F_SETLK, F_UNLCK, 100, 50) == 0);
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 1);
    CHECK(flock(fd, LOCK_EX | LOCK_NB) == 0);
    int other = open("db", O_RDWR);
    CHECK(flock(other, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK);
    close(fd);
    CHECK(flock(other, LOCK_SH | LOCK_NB) == 0);
    close(other);
}

static void mappings(int writable) {
    int fd = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0644);
    CHECK(ftruncate(fd, 20000) == 0);
    CHECK(pwrite(fd, "start", 5, 0) == 5);
    char *seen = mmap(0, 20000, PROT_READ, writable ? MAP_SHARED : MAP_PRIVATE, fd, 0);
    CHECK(seen != MAP_FAILED && !memcmp(seen, "start", 5) && seen[19999] == 0);
    if (writable) {
        char *map = mmap(0, 20000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(map != MAP_FAILED);
        strcpy(map + 9000, "through the mapping");
        CHECK(msync(map, 20000, MS_SYNC) == 0);
        CHECK(!strcmp(seen + 9000, "through the mapping"));
        CHECK(munmap(map, 20000) == 0);
    }
    close(fd);
}

static void far(void) {
    int fd = open("sparse", O_RDWR | O_CREAT | O_TRUNC, 0644);
    char text[8] = "";
    struct stat found;
    CHECK(pwrite(fd, "far", 3, 5L << 32) == 3);
    CHECK(fsync(fd) == 0);
    CHECK(fstat(fd, &found) == 0 && found.st_size == (5L << 32) + 3 && found.st_blocks < 1000);
    CHECK(pread(fd, text, 8, (5L << 32) - 2) == 5 && !memcmp(text, "\0\0far", 5));
    CHECK(ftruncate(fd, 10) == 0 && fstat(fd, &found) == 0 && found.st_size == 10);
    close(fd);
}

static void names(void) {
    struct stat found;
    char text[8] = "";
    int fd = open("victim", O_RDWR | O_CREAT, 0644);
    CHECK(write(fd, "victim", 6) == 6);
    int next = open("next", O_RDWR | O_CREAT, 0644);
    CHECK(write(next, "next", 4) == 4 && close(next) == 0);
    CHECK(rename("next", "victim") == 0);
    CHECK(pread(fd, text, 6, 0) == 6 && !memcmp(text, "victim", 6));
    CHECK(stat("victim", &found) == 0 && found.st_size == 4);
    close(fd);
    fd = open("victim", O_RDWR);
    CHECK(unlink("victim") == 0);
    CHECK(pwrite(fd, "gone", 4, 4) == 4 && pread(fd, text, 8, 0) == 8 && !memcmp(text, "nextgone", 8));
    CHECK(fstat(fd, &found) == 0 && found.st_size == 8);
    CHECK(access("victim", F_OK) == -1 && errno == ENOENT);
    close(fd);
    CHECK(open("none/x", O_RDONLY) == -1 && errno == ENOENT);
    CHECK(open("db", O_RDWR | O_CREAT | O_EXCL, 0644) == -1 && errno == EEXIST);
}

static void attributes(void) {
    char text[100] = "";
    int fd = open("tagged", O_RDWR | O_CREAT, 0644);
    close(fd);
    CHECK(setxattr("tagged", "user.colour", "green", 5, 0) == 0);
    CHECK(getxattr("tagged", "user.colour", text, 100) == 5 && !memcmp(text, "green", 5));
    CHECK(listxattr("tagged", text, 100) == 12 && !strcmp(text, "user.colour"));
    CHECK(setxattr("tagged", "user.colour", "red", 3, XATTR_CREATE) == -1 && errno == EEXIST);
    CHECK(removexattr("tagged", "user.colour") == 0);
    CHECK(getxattr("tagged", "user.colour", text, 100) == -1 && errno == ENODATA);
}

static void appends(void) {
    char line[16];
    int status, fd = open("log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644);
    for (int child = 0; child < 2; child++) {
        if (!fork()) {
            for (int i = 0; i < 50; i++) {
                snprintf(line, sizeof line, "%d %06d\n", child, i);
                if (write(fd, line, 9) != 9) _exit(1);
            }
            _exit(0);
        }
    }
    for (int child = 0; child < 2; child++) CHECK(wait(&status) > 0 && !status);
    struct stat found;
    CHECK(fstat(fd, &found) == 0 && found.st_size == 900);
    close(fd);
}

static void directory(void) {
    char name[32];
    int count = 0;
    CHECK(mkdir("many", 0755) == 0);
    for (int i = 0; i < 600; i++) {
        snprintf(name, sizeof name, "many/a-file-with-the-number-%d", i);
        int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0444);
        CHECK(fd >= 0 && write(fd, name, 20) == 20);
        close(fd);
    }
    DIR *dir = opendir("many");
    for (struct dirent *entry; (entry = readdir(dir));) count += entry->d_name[0] == 'a' && entry->d_type == DT_REG;
    CHECK(count == 600);
    rewinddir(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        if (entry->d_name[0] != '.') CHECK(unlinkat(dirfd(dir), entry->d_name, 0) == 0);
    closedir(dir);
    CHECK(rmdir("many") == 0);
}

int main(int argc, char **argv) {
    locks();
    mappings(argc > 1 && argv[1][0] == '1');
    far();
    names();
    attributes();
    appends();
    directory();
    puts("all is well");
    return 0;
}
