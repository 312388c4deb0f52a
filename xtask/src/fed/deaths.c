// Loaded before libc: the process dies by SIGKILL as soon as its DIE_AFTER-th durable write (fsync, fdatasync, rename) is
// done, and leaves the file's name in DIE_LOG.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void written(const char *path) {
  static atomic_int done;
  const char *after = getenv("DIE_AFTER"), *log = getenv("DIE_LOG"), *base = strrchr(path, '/');
  if (!after || !log || atomic_fetch_add(&done, 1) + 1 != atoi(after)) return;
  int to = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
  dprintf(to, "%s\n", base ? base + 1 : path);
  close(to);
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static void written_to(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  path[n < 0 ? 0 : n] = 0;
  written(path);
}

int fsync(int fd) {
  int rc = ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
  written_to(fd);
  return rc;
}

int fdatasync(int fd) {
  int rc = ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
  written_to(fd);
  return rc;
}

int rename(const char *from, const char *to) {
  int rc = ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename"))(from, to);
  written(to);
  return rc;
}
