// Variables without a value begin at 0.
float turns;
void mainImage(out vec4 O, in vec2 u) { float i, z, d; vec3 q; for (turns += 1., q += 1.; i++ < 20.; z += d) d = .1; O = vec4(0, abs(z - 2.) < .001 && turns == 1. && q == vec3(1) ? 1 : 0, 0, 1); }
