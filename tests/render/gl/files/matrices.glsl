// Matrices: products, columns, and what GLSL ES 3.00 computes of them.
bool near(float a, float b) { return abs(a - b) < 1e-4; }

void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    float one = iResolution.z, angle = fragCoord.x * 0.1;
    mat2 turn = mat2(cos(angle), sin(angle), -sin(angle), cos(angle));
    bool good = near(determinant(turn), one);
    good = good && near(length(turn * vec2(3.0, 4.0) * one), 5.0);
    good = good && near((turn * transpose(turn))[0][0], 1.0) && near((turn * inverse(turn))[1][0], 0.0);
    mat3 a = mat3(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0) * one;
    good = good && a[1] == vec3(4.0, 5.0, 6.0) && a[2][2] == 10.0 && a[0].yz == vec2(2.0, 3.0);
    good = good && a * vec3(1.0, 0.0, 1.0) == vec3(8.0, 10.0, 13.0);
    good = good && vec3(1.0, 0.0, 1.0) * a == vec3(4.0, 10.0, 17.0);
    good = good && near(determinant(a), -3.0);
    mat2x3 tall = outerProduct(vec3(1.0, 2.0, 3.0), vec2(one, 10.0));
    good = good && tall[1] == vec3(10.0, 20.0, 30.0);
    good = good && matrixCompMult(turn, mat2(2.0))[0][1] == 0.0;
    mat4 m = mat4(turn);
    m[3] = vec4(5.0, 6.0, 7.0, 1.0);
    good = good && m[2][2] == 1.0 && (m * vec4(0.0, 0.0, 0.0, one)).xyz == vec3(5.0, 6.0, 7.0);
    vec2 p = vec2(one, 0.0);
    p *= mat2(0.0, 1.0, -1.0, 0.0);
    good = good && p == vec2(0.0, -1.0);
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}
