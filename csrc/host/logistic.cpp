// Newton's method with coordinate descent, as in Yuan, Ho and Lin, An Improved GLMNET for L1-regularized Logistic
// Regression (JMLR 2012). Differences: the quadratic model reads features rounded to bfloat16, which halves the memory
// traffic and leaves the solution unchanged, because gradients and objectives read float32. Four coordinates are
// updated per pass over their columns. The descent is accelerated by extrapolation (Bertrand and Massias, Anderson
// Acceleration of Coordinate Descent, AISTATS 2021).
#include "logistic.h"

#include <algorithm>
#include <cmath>

#include "logistic_loops.h"

namespace spurmix::host {
namespace {

constexpr int64_t kRowsPerSum = 256, kTile = 32;
constexpr int kHistory = 5, kMaxSweeps = 25;
constexpr double kSweepsEnd = 0.01;  // end of the sweeps, relative to the change of the first one
constexpr double kNegligible = 0.1;  // no Newton step if the first sweep changes less, relative to the tolerance

// A row of features, standardized, with a 1 at the end for the intercept.
SPURMIX_CLONES void read_row(const LogisticRows& rows, int64_t i, float* out) {
  const int64_t d = rows.num_features;
  const float *a = rows.x + rows.index[i] * d, *mean = rows.mean, *inverse = rows.inverse_scale;
  if (rows.partner == nullptr) {
    for (int64_t j = 0; j < d; ++j) out[j] = (a[j] - mean[j]) * inverse[j];
  } else {
    const float *b = rows.x + rows.partner[i] * d, share = rows.share[i];
    for (int64_t j = 0; j < d; ++j) out[j] = (b[j] + share * (a[j] - b[j]) - mean[j]) * inverse[j];
  }
  out[d] = 1.0f;
}

double soft_threshold(double value, double threshold) {
  return value > threshold ? value - threshold : value < -threshold ? value + threshold : 0.0;
}

double softplus(double z) { return std::max(z, 0.0) + std::log1p(std::exp(-std::fabs(z))); }

int64_t padded_to(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Vectors of one value per row, for each function.
class RowVectors {
 public:
  RowVectors(int64_t functions, int64_t size) : size_(size), values_(static_cast<size_t>(functions * size), 0.0f) {}
  float* operator[](int64_t k) { return values_.data() + k * size_; }
  const float* operator[](int64_t k) const { return values_.data() + k * size_; }
  void clear() { std::fill(values_.begin(), values_.end(), 0.0f); }
  std::vector<float>& values() { return values_; }

 private:
  int64_t size_;
  std::vector<float> values_;
};

class Solver {
 public:
  Solver(const LogisticRows& rows, const LogisticOptions& options)
      : rows_(rows),
        options_(options),
        functions_(options.num_classes == 2 ? 1 : options.num_classes),
        width_(rows.num_features + 1),
        row_size_(padded_to(width_, 2 * kLanes)),
        column_size_(padded_to(rows.count, kTile)),
        columns_(static_cast<size_t>(width_ * column_size_)),
        margin_(functions_, column_size_),
        probability_(functions_, column_size_),
        curvature_(functions_, column_size_),
        change_(functions_, column_size_),
        product_(functions_, column_size_),
        sum_(static_cast<size_t>(column_size_)),
        weight_(static_cast<size_t>(functions_ * width_)) {
    read_columns();
  }

  LogisticPath path() {
    LogisticPath path;
    double loss = evaluate();
    for (size_t step = 0; step < options_.l1.size(); ++step) {
      l1_ = options_.l1[step];
      l2_ = options_.l2[step];
      int iterations = 0;
      for (bool converged = false; !converged && iterations < options_.max_iterations; ++iterations) {
        const double before = loss + penalty();
        loss = update(loss);
        converged = before - (loss + penalty()) <= options_.tolerance * before;
      }
      path.weight.insert(path.weight.end(), weight_.begin(), weight_.end());
      path.objective.push_back(loss + penalty());
      path.iterations.push_back(iterations);
    }
    return path;
  }

 private:
  void read_columns() {
    std::vector<float> tile(static_cast<size_t>(kTile * row_size_), 0.0f);
    for (int64_t start = 0; start < rows_.count; start += kTile) {
      const int64_t filled = std::min(kTile, rows_.count - start);
      for (int64_t i = 0; i < filled; ++i) read_row(rows_, start + i, tile.data() + i * row_size_);
      for (int64_t j = 0; j < width_; ++j) {
        uint16_t* column = columns_.data() + j * column_size_ + start;
        for (int64_t i = 0; i < filled; ++i) {
          const int64_t lane = i % kLanes, high = i / kLanes % 2, group = i / (2 * kLanes);
          column[2 * (group * kLanes + lane) + high] = round_to_bfloat16(tile[i * row_size_ + j]);
        }
      }
    }
  }

  double penalty() const {
    double absolute = 0, squared = 0;
    for (double w : weight_) absolute += std::fabs(w), squared += w * w;
    return l1_ * absolute + 0.5 * l2_ * squared;
  }

  // Margin of function k in row i after `step` times the change of the quadratic model.
  double margin_after(int64_t i, int64_t k, double step) const {
    return step == 0 ? margin_[k][i] : margin_[k][i] + step * static_cast<double>(change_[k][i]);
  }

  // Loss of row i after `step` times the change.
  double row_loss(int64_t i, double step) const {
    if (functions_ == 1) {
      const double margin = margin_after(i, 0, step);
      return softplus(rows_.label[i] == 1 ? -margin : margin);
    }
    double largest = margin_after(i, 0, step), sum = 0;
    for (int64_t k = 1; k < functions_; ++k) largest = std::max(largest, margin_after(i, k, step));
    for (int64_t k = 0; k < functions_; ++k) sum += std::exp(margin_after(i, k, step) - largest);
    return std::log(sum) + largest - margin_after(i, rows_.label[i], step);
  }

  // Probabilities of row i, and the curvature p (1 - p) of each function.
  void differentiate(int64_t i) {
    if (functions_ == 1) {
      probability_[0][i] = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(margin_[0][i]))));
    } else {
      double largest = margin_[0][i], sum = 0;
      for (int64_t k = 1; k < functions_; ++k) largest = std::max<double>(largest, margin_[k][i]);
      for (int64_t k = 0; k < functions_; ++k) sum += std::exp(margin_[k][i] - largest);
      for (int64_t k = 0; k < functions_; ++k)
        probability_[k][i] = static_cast<float>(std::exp(margin_[k][i] - largest) / sum);
    }
    for (int64_t k = 0; k < functions_; ++k) {
      const float p = probability_[k][i];
      curvature_[k][i] = std::max(p * (1 - p), 1e-7f);
    }
  }

  // Reads all rows in float32 once: margins, loss, gradient and curvature at weight_. Returns the loss.
  double evaluate() {
    std::vector<float> row(static_cast<size_t>(row_size_), 0.0f);
    std::vector<float> weight(static_cast<size_t>(functions_ * row_size_), 0.0f), sum(weight);
    for (int64_t k = 0; k < functions_; ++k)
      std::copy_n(weight_.begin() + k * width_, width_, weight.begin() + k * row_size_);
    gradient_.assign(weight_.size(), 0.0);
    double loss = 0;
    for (int64_t start = 0; start < rows_.count; start += kRowsPerSum) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t i = start; i < std::min(rows_.count, start + kRowsPerSum); ++i) {
        read_row(rows_, i, row.data());
        for (int64_t k = 0; k < functions_; ++k)
          margin_[k][i] = dot(row.data(), weight.data() + k * row_size_, row_size_);
        loss += row_loss(i, 0);
        differentiate(i);
        for (int64_t k = 0; k < functions_; ++k) {
          const bool positive = rows_.label[i] == (functions_ == 1 ? 1 : k);
          add_multiple(probability_[k][i] - positive, row.data(), sum.data() + k * row_size_, row_size_);
        }
      }
      for (int64_t k = 0; k < functions_; ++k)
        for (int64_t j = 0; j < width_; ++j) gradient_[k * width_ + j] += sum[k * row_size_ + j];
    }
    return loss;
  }

  // One Newton step from a point whose gradient and curvature are known. Returns the loss.
  double update(double loss) {
    start_ = moved_ = weight_;
    const double before = loss + penalty();
    if (!minimize_model(kNegligible * options_.tolerance * before)) return loss;
    for (double step = first_step(before); step > 1e-6; step /= 2) {
      move_weight(step);
      const double after = evaluate();
      if (after + penalty() <= before) return after;
    }
    weight_ = start_;
    return evaluate();
  }

  void move_weight(double step) {
    for (size_t j = 0; j < weight_.size(); ++j) weight_[j] = start_[j] + step * (moved_[j] - start_[j]);
  }

  // Step size of a line search over the margins of the quadratic model.
  double first_step(double before) {
    double slope = 0;
    for (size_t j = 0; j < weight_.size(); ++j) {
      slope += gradient_[j] * (moved_[j] - start_[j]) + l1_ * (std::fabs(moved_[j]) - std::fabs(start_[j]));
      slope += 0.5 * l2_ * (moved_[j] * moved_[j] - start_[j] * start_[j]);
    }
    double step = 1;
    for (; step > 1e-3; step /= 2) {
      move_weight(step);
      double after = penalty();
      for (int64_t i = 0; i < rows_.count; ++i) after += row_loss(i, step);
      if (after <= before + 0.01 * step * std::min(slope, 0.0)) break;
    }
    return step;
  }

  // Sweeps of coordinate descent over the quadratic model, from start_ to moved_. Returns false after the first sweep
  // if it changes at most `negligible`, because the minimum is then reached within the tolerance.
  bool minimize_model(double negligible) {
    choose_columns();
    change_.clear();
    product_.clear();
    std::vector<std::vector<double>> weights;
    std::vector<RowVectors> changes;
    double first = 0;
    for (int sweep_number = 0; sweep_number < kMaxSweeps; ++sweep_number) {
      double decrease = 0;
      for (size_t block = 0; block < chosen_.size(); block += kBlock) decrease += update_block(block);
      if (sweep_number == 0) first = decrease;
      if (first <= negligible) return false;
      if (decrease <= kSweepsEnd * first) return true;
      weights.push_back(moved_);
      changes.push_back(change_);
      if (weights.size() == kHistory + 1) {
        extrapolate(weights, changes);
        weights.assign(1, moved_);
        changes.assign(1, change_);
      }
    }
    return true;
  }

  // The weights that are not zero or would leave zero, in blocks of one function, and the Gram matrix of each block. A
  // block is filled up by repeating its last weight.
  void choose_columns() {
    chosen_.clear();
    for (int64_t k = 0; k < functions_; ++k) {
      for (int64_t at = k * width_; at < (k + 1) * width_; ++at)
        if (start_[at] != 0 || std::fabs(gradient_[at]) > l1_) chosen_.push_back(at);
      while (chosen_.size() % kBlock != 0) chosen_.push_back(chosen_.back());
    }
    gram_.resize(chosen_.size() * kBlock);
    for (size_t block = 0; block < chosen_.size(); block += kBlock) {
      const uint16_t* column[kBlock];
      const int64_t k = columns_of(block, column);
      weighted_gram(column, curvature_[k], column_size_, reinterpret_cast<double (*)[kBlock]>(&gram_[block * kBlock]));
    }
  }

  // Finds the columns of a block, and returns its function.
  int64_t columns_of(size_t block, const uint16_t** column) const {
    for (int64_t a = 0; a < kBlock; ++a) column[a] = columns_.data() + chosen_[block + a] % width_ * column_size_;
    return chosen_[block] / width_;
  }

  // Minimizes over each weight of a block in turn. Returns the sum of curvature * change^2.
  double update_block(size_t block) {
    const uint16_t* column[kBlock];
    const int64_t k = columns_of(block, column);
    const double (*gram)[kBlock] = reinterpret_cast<const double (*)[kBlock]>(&gram_[block * kBlock]);
    double slopes[kBlock], decrease = 0;
    float change[kBlock] = {};
    products(column, product_[k], column_size_, slopes);
    for (int64_t a = 0; a < kBlock; ++a) {
      const int64_t at = chosen_[block + a];
      if (a > 0 && at == chosen_[block + a - 1]) break;  // repeated
      double slope = gradient_[at] + l2_ * moved_[at] + slopes[a];
      for (int64_t b = 0; b < a; ++b) slope += gram[a][b] * change[b];
      const double curvature = gram[a][a] + l2_;
      if (!(curvature > 0)) continue;
      const double next = soft_threshold(moved_[at] - slope / curvature, l1_ / curvature), step = next - moved_[at];
      change[a] = static_cast<float>(step);
      moved_[at] = next;
      decrease += curvature * step * step;
    }
    if (decrease > 0 && functions_ == 1) {
      move(column, change, curvature_[0], change_[0], product_[0], column_size_);
    } else if (decrease > 0) {
      std::fill(sum_.begin(), sum_.end(), 0.0f);
      move(column, change, probability_[k], change_[k], sum_.data(), column_size_);
      add_softmax_products(k);
    }
    return decrease;
  }

  // product_ += Hessian * change for the change sum_ / p of the margins of function k.
  void add_softmax_products(int64_t k) {
    add_multiple(1.0f, sum_.data(), product_[k], column_size_);
    for (int64_t c = 0; c < functions_; ++c)
      add_product(-1.0f, probability_[c], sum_.data(), product_[c], column_size_);
  }

  // Value of the quadratic model at w and the change of the margins.
  double model_value(const std::vector<double>& w, const RowVectors& change) const {
    double sum = 0;
    for (size_t at = 0; at < w.size(); ++at)
      sum += gradient_[at] * (w[at] - start_[at]) + l1_ * std::fabs(w[at]) + 0.5 * l2_ * w[at] * w[at];
    for (int64_t i = 0; i < rows_.count; ++i) {
      double mean = 0, square = 0;
      for (int64_t k = 0; k < functions_; ++k) {
        const double q = change[k][i];
        mean += probability_[k][i] * q;
        square += (functions_ == 1 ? curvature_[0][i] : probability_[k][i]) * q * q;
      }
      sum += 0.5 * (functions_ == 1 ? square : square - mean * mean);
    }
    return sum;
  }

  // Replaces moved_ by the combination of the last sweeps with the smallest extrapolated change, if it is better.
  void extrapolate(const std::vector<std::vector<double>>& weights, std::vector<RowVectors>& changes) {
    double share[kHistory];
    if (!extrapolation_shares(weights, share)) return;
    std::vector<double> w(moved_.size(), 0.0);
    RowVectors change(functions_, column_size_);
    for (int a = 0; a < kHistory; ++a) {
      for (size_t j = 0; j < w.size(); ++j) w[j] += share[a] * weights[a + 1][j];
      add_multiple(static_cast<float>(share[a]), changes[a + 1][0], change[0], functions_ * column_size_);
    }
    if (!(model_value(w, change) < model_value(moved_, change_))) return;
    moved_.swap(w);
    change_ = change;
    product_.clear();
    if (functions_ == 1) return add_product(1.0f, curvature_[0], change_[0], product_[0], column_size_);
    for (int64_t k = 0; k < functions_; ++k) {
      std::fill(sum_.begin(), sum_.end(), 0.0f);
      add_product(1.0f, probability_[k], change_[k], sum_.data(), column_size_);
      add_softmax_products(k);
    }
  }

  // Solves for the shares, which sum to 1. Returns false if there is no solution.
  static bool extrapolation_shares(const std::vector<std::vector<double>>& weights, double* share) {
    double matrix[kHistory][kHistory + 1], trace = 0, total = 0;
    for (int a = 0; a < kHistory; ++a) {
      for (int b = 0; b < kHistory; ++b) {
        matrix[a][b] = 0;
        for (size_t j = 0; j < weights[0].size(); ++j)
          matrix[a][b] += (weights[a + 1][j] - weights[a][j]) * (weights[b + 1][j] - weights[b][j]);
      }
      matrix[a][kHistory] = 1.0;
      trace += matrix[a][a];
    }
    for (int a = 0; a < kHistory; ++a) matrix[a][a] += 1e-10 * trace;
    for (int a = 0; a < kHistory; ++a) {  // Gauss-Jordan elimination of a positive definite matrix
      for (int b = 0; b < kHistory; ++b) {
        if (b == a) continue;
        const double factor = matrix[b][a] / matrix[a][a];
        for (int c = a; c <= kHistory; ++c) matrix[b][c] -= factor * matrix[a][c];
      }
    }
    for (int a = 0; a < kHistory; ++a) total += share[a] = matrix[a][kHistory] / matrix[a][a];
    if (!(std::fabs(total) > 0) || !std::isfinite(total)) return false;
    for (int a = 0; a < kHistory; ++a) share[a] /= total;
    return true;
  }

  const LogisticRows& rows_;
  const LogisticOptions& options_;
  const int64_t functions_, width_, row_size_, column_size_;
  std::vector<uint16_t> columns_;  // [width, column_size], bfloat16
  RowVectors margin_, probability_, curvature_;
  RowVectors change_, product_;  // change of the margins in the quadratic model, and its product with the Hessian
  std::vector<float> sum_;
  std::vector<double> weight_, gradient_, start_, moved_;  // [functions, width]
  std::vector<int64_t> chosen_;
  std::vector<double> gram_;
  double l1_ = 0, l2_ = 0;
};

}  // namespace

LogisticPath fit_logistic_path(const LogisticRows& rows, const LogisticOptions& options) {
  return Solver(rows, options).path();
}

}  // namespace spurmix::host
