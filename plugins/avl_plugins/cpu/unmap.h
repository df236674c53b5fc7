// Memory of a mapped file that will not be read again.
#ifndef AVL_UNMAP_H
#define AVL_UNMAP_H

#include <stddef.h>

// Lets go of the whole pages of [at, at + bytes) if they are mapped from a file; reading them again
// reads the file again. Other memory, and other systems than Linux, are left alone.
void avl_unmap(const void *at, size_t bytes);

#endif
