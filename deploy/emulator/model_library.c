/* What does a client of protocol 5 compute with: kinematics and dynamics under the symbol names that it looks for.
 *
 * Matrices are column major. tables.h is written by robot_model.py: Denavit-Hartenberg parameters, and mass, centre and
 * inertia of links 1 to 7 in their own frames. Forces by recursive Newton-Euler; the mass matrix column by column.
 */
#include <math.h>
#include <string.h>

#include "tables.h"

#define N 7

typedef struct {
  double r[3][3], p[3];
} Pose;

static Pose times(const Pose *a, const Pose *b) {
  Pose c;
  for (int i = 0; i < 3; i++) {
    for (int j = 0; j < 3; j++) {
      c.r[i][j] = 0;
      for (int k = 0; k < 3; k++) c.r[i][j] += a->r[i][k] * b->r[k][j];
    }
    c.p[i] = a->p[i];
    for (int k = 0; k < 3; k++) c.p[i] += a->r[i][k] * b->p[k];
  }
  return c;
}

static Pose link(int i, double q) {
  const double ca = cos(DH_ALPHA[i]), sa = sin(DH_ALPHA[i]), c = cos(q), s = sin(q);
  Pose t = {{{c, -s, 0}, {s * ca, c * ca, -sa}, {s * sa, c * sa, ca}}, {DH_A[i], -sa * DH_D[i], ca * DH_D[i]}};
  return t;
}

static Pose read_pose(const double m[16]) {
  Pose t;
  for (int i = 0; i < 3; i++) {
    for (int j = 0; j < 3; j++) t.r[i][j] = m[4 * j + i];
    t.p[i] = m[12 + i];
  }
  return t;
}

/* Pose of frame 1..7 (joints), 8 (flange), 9 (end effector); poses of the joints on the way if asked for. */
static Pose forward(int frame, const double *q, const double *f_t_ee, Pose *joints) {
  Pose t = {{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}, {0, 0, 0}};
  for (int i = 0; i < N && i < frame; i++) {
    const Pose l = link(i, q[i]);
    t = times(&t, &l);
    if (joints) joints[i] = t;
  }
  if (frame >= 8) {
    const Pose flange = {{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}, {0, 0, FLANGE_M}};
    t = times(&t, &flange);
  }
  if (frame == 9) {
    const Pose ee = read_pose(f_t_ee);
    t = times(&t, &ee);
  }
  return t;
}

static void write_pose(int frame, const double *q, const double *f_t_ee, double out[16]) {
  const Pose t = forward(frame, q, f_t_ee, 0);
  memset(out, 0, 16 * sizeof(double));
  for (int i = 0; i < 3; i++) {
    for (int j = 0; j < 3; j++) out[4 * j + i] = t.r[i][j];
    out[12 + i] = t.p[i];
  }
  out[15] = 1;
}

/* 6 x 7: linear rows, then angular rows, in the base's axes or the frame's own. */
static void jacobian(int frame, int own_axes, const double *q, const double *f_t_ee, double out[42]) {
  Pose joints[N];
  const Pose t = forward(frame, q, f_t_ee, joints);
  memset(out, 0, 42 * sizeof(double));
  for (int j = 0; j < N && j < frame; j++) {
    const double z[3] = {joints[j].r[0][2], joints[j].r[1][2], joints[j].r[2][2]};
    const double d[3] = {t.p[0] - joints[j].p[0], t.p[1] - joints[j].p[1], t.p[2] - joints[j].p[2]};
    const double column[6] = {z[1] * d[2] - z[2] * d[1], z[2] * d[0] - z[0] * d[2], z[0] * d[1] - z[1] * d[0],
                              z[0], z[1], z[2]};
    for (int i = 0; i < 6; i++) {
      double value = column[i];
      if (own_axes) {
        const double *v = column + 3 * (i / 3);
        value = t.r[0][i % 3] * v[0] + t.r[1][i % 3] * v[1] + t.r[2][i % 3] * v[2];
      }
      out[6 * j + i] = value;
    }
  }
}

static void cross(const double a[3], const double b[3], double out[3]) {
  out[0] = a[1] * b[2] - a[2] * b[1];
  out[1] = a[2] * b[0] - a[0] * b[2];
  out[2] = a[0] * b[1] - a[1] * b[0];
}

static void turn(const Pose *t, int inverse, const double v[3], double out[3]) {
  for (int i = 0; i < 3; i++) {
    out[i] = 0;
    for (int k = 0; k < 3; k++) out[i] += (inverse ? t->r[k][i] : t->r[i][k]) * v[k];
  }
}

typedef struct {
  double mass, center[3], inertia[9];
} Body;

/* What a load in the flange's frame adds to link 7. */
static Body last_link(double mass, const double center[3], const double *inertia) {
  Body b;
  const double own = MASS[N - 1], total = own + mass;
  const double load[3] = {center[0], center[1], center[2] + FLANGE_M};
  double offset[2][3];
  b.mass = total;
  for (int i = 0; i < 3; i++) b.center[i] = (own * CENTER[3 * (N - 1) + i] + mass * load[i]) / total;
  for (int i = 0; i < 3; i++) {
    offset[0][i] = CENTER[3 * (N - 1) + i] - b.center[i];
    offset[1][i] = load[i] - b.center[i];
  }
  for (int i = 0; i < 9; i++) b.inertia[i] = INERTIA[9 * (N - 1) + i] + (inertia ? inertia[i] : 0);
  for (int part = 0; part < 2; part++) {
    const double m = part ? mass : own, *o = offset[part], square = o[0] * o[0] + o[1] * o[1] + o[2] * o[2];
    for (int i = 0; i < 3; i++)
      for (int j = 0; j < 3; j++) b.inertia[3 * i + j] += m * ((i == j) * square - o[i] * o[j]);
  }
  return b;
}

/* Torques of an acceleration; `up` is the acceleration of the base that stands for gravity. */
static void newton_euler(const double *q, const double *dq, const double *ddq, const double up[3], const Body *last,
                         double tau[7]) {
  double w[3] = {0}, dw[3] = {0}, a[3] = {up[0], up[1], up[2]}, force[N][3], moment[N][3], center[N][3];
  Pose links[N];
  for (int i = 0; i < N; i++) {
    const double *c = i == N - 1 ? last->center : CENTER + 3 * i;
    const double *inertia = i == N - 1 ? last->inertia : INERTIA + 9 * i;
    const double mass = i == N - 1 ? last->mass : MASS[i];
    double u[3], v[3], x[3], at_center[3];
    links[i] = link(i, q[i]);
    cross(dw, links[i].p, u);
    cross(w, links[i].p, v);
    cross(w, v, x);
    for (int k = 0; k < 3; k++) x[k] += u[k] + a[k];
    turn(&links[i], 1, x, a);
    turn(&links[i], 1, w, u);
    turn(&links[i], 1, dw, v);
    w[0] = u[0], w[1] = u[1], w[2] = u[2] + dq[i];
    dw[0] = v[0] + u[1] * dq[i], dw[1] = v[1] - u[0] * dq[i], dw[2] = v[2] + ddq[i];
    cross(dw, c, u);
    cross(w, c, v);
    cross(w, v, x);
    for (int k = 0; k < 3; k++) at_center[k] = a[k] + u[k] + x[k];
    for (int k = 0; k < 3; k++) {
      u[k] = v[k] = 0;
      for (int j = 0; j < 3; j++) u[k] += inertia[3 * k + j] * dw[j], v[k] += inertia[3 * k + j] * w[j];
    }
    cross(w, v, x);
    for (int k = 0; k < 3; k++) {
      force[i][k] = mass * at_center[k];
      moment[i][k] = u[k] + x[k];
      center[i][k] = c[k];
    }
  }
  double f[3] = {0}, n[3] = {0};
  for (int i = N - 1; i >= 0; i--) {
    double next_f[3] = {0}, next_n[3] = {0}, u[3] = {0}, v[3];
    if (i < N - 1) {
      turn(&links[i + 1], 0, f, next_f);
      turn(&links[i + 1], 0, n, next_n);
      cross(links[i + 1].p, next_f, u);
    }
    cross(center[i], force[i], v);
    for (int k = 0; k < 3; k++) {
      f[k] = force[i][k] + next_f[k];
      n[k] = moment[i][k] + next_n[k] + v[k] + u[k];
    }
    tau[i] = n[2];
  }
}

static const double ZERO[7] = {0}, WEIGHTLESS[3] = {0};

void M_NE(const double q[7], const double load_inertia[9], double load_mass, const double load_center[3],
          double out[49]) {
  const Body last = last_link(load_mass, load_center, load_inertia);
  for (int j = 0; j < N; j++) {
    double unit[7] = {0};
    unit[j] = 1;
    newton_euler(q, ZERO, unit, WEIGHTLESS, &last, out + 7 * j);
  }
}

void c_NE(const double q[7], const double dq[7], const double load_inertia[9], double load_mass,
          const double load_center[3], double out[7]) {
  const Body last = last_link(load_mass, load_center, load_inertia);
  newton_euler(q, dq, ZERO, WEIGHTLESS, &last, out);
}

void g_NE(const double q[7], const double earth[3], double load_mass, const double load_center[3], double out[7]) {
  const Body last = last_link(load_mass, load_center, 0);
  const double up[3] = {-earth[0], -earth[1], -earth[2]};
  newton_euler(q, ZERO, ZERO, up, &last, out);
}

#define FRAME(i)                                                                          \
  void O_T_J##i(const double q[7], double out[16]) { write_pose(i, q, 0, out); }          \
  void O_J_J##i(const double q[7], double out[42]) { jacobian(i, 0, q, 0, out); }         \
  void Ji_J_J##i(const double q[7], double out[42]) { jacobian(i, 1, q, 0, out); }
FRAME(2) FRAME(3) FRAME(4) FRAME(5) FRAME(6) FRAME(7) FRAME(8)

/* The Jacobians of joint 1 depend on nothing and take no joint positions. */
void O_T_J1(const double q[7], double out[16]) { write_pose(1, q, 0, out); }
void O_J_J1(double out[42]) { jacobian(1, 0, ZERO, 0, out); }
void Ji_J_J1(double out[42]) { jacobian(1, 1, ZERO, 0, out); }

void O_T_J9(const double q[7], const double f_t_ee[16], double out[16]) { write_pose(9, q, f_t_ee, out); }
void O_J_J9(const double q[7], const double f_t_ee[16], double out[42]) { jacobian(9, 0, q, f_t_ee, out); }
void Ji_J_J9(const double q[7], const double f_t_ee[16], double out[42]) { jacobian(9, 1, q, f_t_ee, out); }
