/* Remembers what was made durable: after each fdatasync or fsync of a file its content is kept beside it as FILE.synced, and counted in
   FILE.syncs. A test that ends the node puts these in the place of the files: whatever was not synced has never been written.

   Of the folder blobs: files whose content was synced are named in blobs.contents, those that were there when the folder was synced in
   blobs.names, both beside it. A name that is not in the second has never been given; a file that is not in the first is empty. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int wanted(const char *path) {
    const char *name = strrchr(path, '/');
    return name && (strstr(name, ".db") != NULL) && !strstr(name, ".synced") && !strstr(name, "-shm");
}

/* A line for each name in the folder. The file is put in place at once: the node may end here too. */
static void names(const char *folder) {
    char list[4200], next[4200];
    snprintf(list, sizeof list, "%s.names", folder);
    snprintf(next, sizeof next, "%s.names.next", folder);
    DIR *here = opendir(folder);
    FILE *out = fopen(next, "we");
    struct dirent *entry;
    while (here && out && (entry = readdir(here))) fprintf(out, "%s\n", entry->d_name);
    if (here) closedir(here);
    if (out) fclose(out);
    rename(next, list);
}

/* A blob is synced under the name ADDRESS.part. */
static void content(const char *path, const char *name) {
    char list[4200];
    snprintf(list, sizeof list, "%.*s.contents", (int)(name - path - 1), path);
    FILE *out = fopen(list, "ae");
    if (!out) return;
    fprintf(out, "%.64s\n", name);
    fclose(out);
}

static int is_blob(const char *path) {
    size_t length = strlen(path);
    if (length >= 6 && !strcmp(path + length - 6, "/blobs")) {
        names(path);
        return 1;
    }
    const char *name = strrchr(path, '/'), *folder = name;
    if (!name || name - path < 6 || strncmp(folder - 6, "/blobs", 6)) return 0;
    content(path, name + 1);
    return 1;
}

static void keep(int fd) {
    char link[64], path[4096], copy[4200], next[4200], buffer[65536];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return;
    path[length] = 0;
    if (is_blob(path) || !wanted(path)) return;
    snprintf(copy, sizeof copy, "%s.synced", path);
    snprintf(next, sizeof next, "%s.synced.next", path);
    int in = open(path, O_RDONLY | O_CLOEXEC), out = open(next, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ssize_t n;
    while (in >= 0 && out >= 0 && (n = read(in, buffer, sizeof buffer)) > 0)
        if (write(out, buffer, (size_t)n) != n) break;
    if (in >= 0) close(in);
    if (out >= 0) close(out);
    rename(next, copy);
    snprintf(copy, sizeof copy, "%s.syncs", path);
    int count = open(copy, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (count >= 0) {
        if (write(count, ".", 1) != 1) {}
        close(count);
    }
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    int done = real(fd);
    if (done == 0) keep(fd);
    return done;
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    int done = real(fd);
    if (done == 0) keep(fd);
    return done;
}
