#include "embeddings.h"

#include <algorithm>
#include <cmath>

#include "isa.h"

#define SPURMIX_BODY "embeddings.inc"
#include "each_isa.h"

namespace spurmix::cpu {

void mix_embeddings(const MixEmbeddings& args, int64_t begin, int64_t end) {
  SPURMIX_DISPATCH(mix_embeddings(args, begin, end))
}

void bert_embeddings(const BertEmbeddings& args, int64_t begin, int64_t end) {
  SPURMIX_DISPATCH(bert_embeddings(args, begin, end))
}

}  // namespace spurmix::cpu
