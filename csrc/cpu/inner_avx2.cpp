// Between the products, level "avx2".
#include "inner_f16c.h"
#include "inner.h"

QUINTET_INNER(avx2)
