// Device code of the operators: cpu/ and cuda/ implement each of these functions. The files of this folder do the
// checks that are the same on all devices, allocate the outputs and register the operators. A function here does the
// checks that depend on the device, such as the range of an index, and runs the kernel. `op` is the operator's name in
// errors.
#pragma once

#include <tuple>

#include "arguments.h"

namespace spurmix::device {

void draw(const SequenceArguments& sequence, const DrawOutputs& out, const char* op);

void mix_images(const ImageArguments& images, const PairArguments& pairs, const CropArguments& crops, const Tensor& out,
                const char* op);

// Draws the pairs, their crops and flips, and mixes them.
void mix_image_batch(const ImageArguments& images, const Tensor& labels, const SequenceArguments& sequence,
                     const Crop& crop, const BatchOutputs& out, const char* op);

void mix_rows(const Tensor& rows, const PairArguments& pairs, const Tensor& out, const char* op);

void mix_labels(const LabelArguments& labels, const Tensor& out, const char* op);

void cross_entropy(const LossArguments& args, const Tensor& loss, const Tensor& logsumexp, const char* op);

void cross_entropy_with_grad(const LossArguments& args, const Tensor& loss, const Tensor& grad_logits, const char* op);

void cross_entropy_backward(const LossArguments& args, const Tensor& grad, const Tensor& logsumexp,
                            const Tensor& grad_logits, const char* op);

void group_counts(const CountArguments& args, const char* op);

void mix_embeddings(const Tensor& weight, const TokenArguments& tokens, const Tensor& out, const char* op);

void mix_embeddings_backward(const Tensor& grad, const TokenArguments& tokens, int64_t padding_idx,
                             const Tensor& grad_weight, const char* op);

// The rows of the gradient that are not zero: their indices and values.
std::tuple<Tensor, Tensor> mix_embeddings_backward_rows(const Tensor& grad, const TokenArguments& tokens,
                                                        int64_t padding_idx, int64_t rows, ScalarType dtype,
                                                        const char* op);

void mix_bert_embeddings(const BertArguments& args, const Tensor& norm_bias, double eps, const Tensor& out,
                         const Tensor& mean, const Tensor& rstd, const char* op);

struct BertGradients {
  Tensor mixed;             // [B, S, D], of the mixed words
  Tensor positions, types;  // of position_weight and type_weight
};

// Writes `out`, and returns the gradients [D] of norm_weight and norm_bias.
std::tuple<Tensor, Tensor> mix_bert_embeddings_backward(const BertArguments& args, const Tensor& grad,
                                                        const Tensor& mean, const Tensor& rstd,
                                                        const BertGradients& out, const char* op);

}  // namespace spurmix::device
