#define r(a)mat2(cos(a+vec4(0,33,11,0)))
void mainImage(out vec4 O,vec2 u){float i=0.,s=i;vec2 R=iResolution.xy,p=(u+u-R)/R.y;for(O=vec4(i);i++<9.;s+=i)p*=r(i),O.g+=.5;O=vec4(0,s==45.&&O.g==4.5&&abs(length(p)-length(u+u-R)/R.y)<.3,0,1);}
