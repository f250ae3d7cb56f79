// Between the products, level "avx512".
#include "inner_f16c.h"
#include "inner.h"

QUINTET_INNER(avx512)
