// Paths of L1 logistic regression on rows of a feature matrix. Free of Python and torch.
#pragma once

#include <cstdint>
#include <vector>

namespace spurmix::host {

// The rows of one problem: row i is share[i] * x[index[i]] + (1 - share[i]) * x[partner[i]], standardized as
// (value - mean) * inverse_scale, and has the class label[i]. Without partners, row i is x[index[i]].
struct LogisticRows {
  const float* x;  // [N, D], contiguous
  const float *mean, *inverse_scale;
  int64_t num_features;
  const int64_t *index, *partner;  // partner may be null
  const float* share;              // null if partner is
  const int32_t* label;
  int64_t count;
};

struct LogisticOptions {
  int64_t num_classes;         // 2: one logistic function, more: softmax
  std::vector<double> l1, l2;  // penalties of each step of the path
  double tolerance;            // stop at a relative decrease of the objective below it
  int max_iterations;          // Newton steps per step of the path
};

struct LogisticPath {
  std::vector<double> weight;  // [L, K, D + 1], the last column is the intercept. K is 1 for two classes
  std::vector<double> objective;
  std::vector<int64_t> iterations;
};

// Minimizes sum_i loss_i + l1 |W|_1 + l2 |W|^2 / 2 for each step, starting from the solution of the step before. The
// intercept is penalized too, as in LIBLINEAR.
LogisticPath fit_logistic_path(const LogisticRows& rows, const LogisticOptions& options);

}  // namespace spurmix::host
